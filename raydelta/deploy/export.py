"""``raydelta export``: a trained model for other programs (ONNX, torch.export), checked on photographs, with its card.

The folder appears whole or not at all.
"""

import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.fx.experimental import _config

from raydelta.data.decoding import STORED, load_picture
from raydelta.data.prepare import evaluation_split
from raydelta.data.reading import read_image
from raydelta.data.shards import list_ids, read_manifest, read_rows
from raydelta.data.simulator.scene import simulate
from raydelta.deploy.card import write_card
from raydelta.deploy.inputs import find_inputs
from raydelta.deploy.network import WEIGHTS, Deployed, build, choose_job, read_network, save
from raydelta.errors import UserError
from raydelta.storage import is_remote
from raydelta.training.job import Job
from raydelta.version import __version__

ONNX, PROGRAM = "model.onnx", "model.pt2"
CHECKED = 8  # photographs, at most
SCALES = (1.0, 0.75)  # that they are checked at
REQUIRED = 0.999  # share of the pixels on which an exported model has to give the same ids as the original


@dataclass(frozen=True)
class Agreement:
    """How closely one exported model follows the original in torch, on images of one size."""

    model: str
    width: int
    height: int
    agreement: float  # share of the pixels with the same id
    deviation: float  # of the logits, at most
    seconds: float  # of an image, on one thread of this machine's CPU
    torch_seconds: float


class _Program(nn.Module):
    """Photographs uint8 (N, H, W, 3) → ids uint8 (N, H, W) and logits (N, C, H, W)."""

    def __init__(self, model: Deployed) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.logits(images)
        return logits.max(1).indices.byte(), logits


@dataclass(frozen=True)
class Exported:
    """What was exported, and how it was checked."""

    model: str  # the training that was exported
    method: str | None  # its row of the table
    images: str  # what the checks were made on, in words
    checks: list[Agreement]


def export(run: Path, out: Path, method: str | None = None, images: Sequence[str] = ()) -> Exported:
    """Write ``model.onnx``, ``model.pt2``, what ``raydelta.load`` reads, and a card; check the first three.

    Args:
        method: which row of a sweep; the recommended one, if None.
        images: photographs to check with, as ``raydelta predict`` takes them; if none, those of the run's data set
            where it lies on this machine, else drawn street scenes.

    Raises:
        UserError: not a finished training, the folder exists, an extra is missing, or an exported model gives other
            ids than the original.
    """
    out = out.expanduser().resolve()
    if out.exists():
        raise UserError(f"{out}: exists already; choose a new folder")
    _import_onnx()
    job = choose_job(run, method)
    model = build(job)
    words, photographs = _photographs(job, images)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        save(model, beside)
        _write_programs(model, beside)
        checks = [check for scale in SCALES for check in _check(model, beside, _stack(photographs, scale))]
        write_card(job, model, [vars(check) for check in checks], words, beside / "README.md")
        beside.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(model.config.run, model.config.method, words, checks)


def _write_programs(model: Deployed, folder: Path) -> None:
    """Trace once, for any number and size of photographs."""
    config, dynamic = model.config, torch.export.Dim.DYNAMIC
    metadata = {
        "classes": json.dumps(config.taxonomy.classes),
        "palette": json.dumps(config.taxonomy.palette),
        "taxonomy": config.taxonomy.name,
        "run": config.run,
        "method": config.method or "",
        "raydelta": __version__,
    }
    example = torch.zeros(2, model.config.height + 9, 2 * model.config.width + 5, 3, dtype=torch.uint8)
    oblivious = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    # Oblivious: a size of 1 is no special case. The warnings are about the exporter's own code.
    with torch.no_grad(), oblivious, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                _Program(model), (example,), dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},), strict=False
            )
            torch.export.save(program, folder / PROGRAM, extra_files={"classes.json": metadata["classes"]})
            names = {"input_names": ["images"], "output_names": ["ids", "logits"]}
            exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
        except Exception as error:  # the exporters know no common one; an architecture may not be traceable
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{model.config.run}: torch cannot export its network ({type(error).__name__}: {reason}); "
                "raydelta.load and raydelta predict take it as it is"
            ) from error
    assert exported is not None
    exported.model.metadata_props.update(metadata)
    exported.save(folder / ONNX)


def _photographs(job: Job, given: Sequence[str]) -> tuple[str, list[Image.Image]]:
    """Photographs to check with, RGB, and what they are in words."""
    if given:
        found = [item for item in find_inputs(given)[0] if not item.is_video][:CHECKED]
        if not found:
            raise UserError(f"--images {' '.join(given)}: no photograph among them")
        return f"{len(found)} given photographs", [read_image(item.address)[0] for item in found]
    uri = job.config.data.real
    # What a stage from elsewhere names is not opened, unless it lies here.
    if not is_remote(uri) and Path(uri).is_dir():
        split = evaluation_split(read_manifest(uri)) or "train"
        ids = [sample.id for sample in list_ids(uri, split)[:CHECKED]]
        rows = read_rows(uri, split, ids=ids)["image"].to_pylist()
        return f"{len(rows)} photographs of the run's data set", [load_picture(data, STORED) for data in rows]
    size = {"width": 2 * job.config.data.width, "height": 2 * job.config.data.height}
    drawn = [Image.fromarray(simulate(number, look="street", **size)[0]) for number in range(CHECKED)]
    return f"{CHECKED} drawn street scenes, as the run's photographs do not lie on this machine", drawn


def _stack(images: Sequence[Image.Image], scale: float) -> Tensor:
    """Images of the size of the first one times ``scale``: uint8 (N, H, W, 3)."""
    width, height = (round(scale * pixels) for pixels in images[0].size)
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB").resize((width, height))) for image in images]))


def _check(model: Deployed, folder: Path, images: Tensor) -> list[Agreement]:
    """Compare what lies in the folder with the model.

    Raises:
        UserError: an exported model gives other ids.
    """
    program, session = torch.export.load(folder / PROGRAM).module(), _import_onnx()
    options = session.SessionOptions()
    options.intra_op_num_threads = 1
    onnx = session.InferenceSession(folder / ONNX, options, providers=["CPUExecutionProvider"])
    again, threads = _Program(read_network(folder)), torch.get_num_threads()
    runs: dict[str, Callable[[Tensor], Any]] = {
        ONNX: lambda image: map(torch.from_numpy, onnx.run(["ids", "logits"], {"images": image.numpy()})),
        PROGRAM: program,
        WEIGHTS: again,
    }
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            true_ids, true_logits, torch_seconds = _timed(_Program(model), images)
            checks = []
            for name, run in runs.items():
                ids, logits, seconds = _timed(run, images)
                agreement = float((ids == true_ids).float().mean())
                deviation = float((logits - true_logits).abs().max())
                size = images.shape[2], images.shape[1]
                checks.append(Agreement(name, *size, agreement, deviation, seconds, torch_seconds))
    finally:
        torch.set_num_threads(threads)
    for check in checks:
        if check.agreement < REQUIRED:
            raise UserError(
                f"{model.config.run}: {check.model} gives the ids of the original model on only "
                f"{check.agreement:.2%} of the pixels of {len(images)} images; {REQUIRED:.1%} are needed, so "
                "nothing was written; try other versions of torch and onnxruntime"
            )
    return checks


def _timed(run: Callable[[Tensor], Any], images: Tensor) -> tuple[Tensor, Tensor, float]:
    """The ids and logits of every image, asked one by one, and the median of the seconds."""
    run(images[:1])  # the first is slower
    ids, logits, seconds = list[Tensor](), list[Tensor](), list[float]()
    for image in images:
        start = time.perf_counter()
        found = run(image[None])
        seconds.append(time.perf_counter() - start)
        for kept, one in zip((ids, logits), found, strict=True):
            kept.append(one)
    return torch.cat(ids), torch.cat(logits), median(seconds)


def _import_onnx() -> Any:
    """onnxruntime, where all that ONNX needs is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs {error.name}: pip install 'raydelta[export]'") from error
    return onnxruntime
