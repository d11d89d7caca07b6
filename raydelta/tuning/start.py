"""How every command that trains begins: check the settings, join or start Ray, choose the preset."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from raydelta.compute.asked import check_named
from raydelta.compute.cluster import Cluster, choose_preset, ensure_ray, warm_up
from raydelta.config import Config, load_config
from raydelta.data.prepare import check_data
from raydelta.errors import UserError
from raydelta.networks.own_code import export_code, is_code, refuse_code
from raydelta.storage.bucket import open_runs, publish
from raydelta.tuning.trackers import check_trackers

JOB_FOLDERS = "runtime_resources"
"""The folder of Ray in which the folders that jobs take along are unpacked."""

Announce = Callable[[Cluster, str], None]


class Started(NamedTuple):
    """What a command runs on, and the settings that it has there."""

    cluster: Cluster
    preset: str
    config: Config


def check_runs(runs: Path) -> None:
    """Check that what a job of Ray writes into a directory stays.

    Raises:
        UserError: it is a folder in the job's own, which Ray deletes.
    """
    if JOB_FOLDERS in runs.parts:
        raise UserError(
            f"--runs {runs}: it would be in the folder of this job, which Ray deletes; give an address, or an "
            "absolute path on storage that all nodes share"
        )


def start(
    fields: Mapping[str, Any],
    preset: str | None = None,
    config_file: str | Path | None = None,
    announce: Announce = lambda cluster, preset: None,
    space: Mapping[str, Any] | None = None,
) -> Started:
    """Check the settings, then join the running Ray or start a private one.

    Args:
        fields: dotted config fields that the user has named, over preset, file and space.
        preset: ``laptop`` or ``gpu``; None takes ``gpu`` where the cluster has one.
        announce: called with the cluster and the preset as soon as both are known.
        space: dotted config fields of a search space.

    Raises:
        UserError: a bad setting, a tracker that is not installed, or no cluster; bad settings are named before Ray
            starts.
    """
    own, fields = fields, {**(space or {}), **fields}
    asked = load_config(preset or "laptop", config_file, fields)
    check_named(asked, own)
    check_trackers(asked.tracking)
    check_data(asked)
    check_files(asked)
    cluster = ensure_ray()
    preset = choose_preset(preset, cluster)
    announce(cluster, preset)
    config = load_config(preset, config_file, fields)
    library = ["segmentation_models_pytorch"] if config.segmenter.architecture != "lean" else []
    warm_up("raydelta.training.run", *library)
    return Started(cluster, preset, config)


def check_files(config: Config) -> None:
    """Look whether the networks that the config names are there.

    Raises:
        UserError: one is not, or it is ``module:function``.
    """
    model = config.expert.model
    refuse_code(model)
    files = {
        "segmenter.weights": config.segmenter.weights_file,
        "expert.model": Path(model).expanduser() if model is not None else None,
    }
    for field, path in files.items():
        if path is not None and not path.exists():
            hint = "; a name to download has neither / nor ." if field == "segmenter.weights" else ""
            raise UserError(f"{field} = {path}: no such file or folder{hint}")


def export_own_code(fields: Mapping[str, Any], runs: str | Path) -> dict[str, Any]:
    """The fields of a command, with ``expert.model=module:function`` replaced by the program that it makes.

    Args:
        runs: output directory, which keeps the program.

    Raises:
        UserError: as ``export_code``.
    """
    name = fields.get("expert.model")
    if not is_code(name):
        return dict(fields)
    program = export_code(str(name), open_runs(runs, write=True).resolve() / "networks")
    publish(program)
    return {**fields, "expert.model": str(program)}
