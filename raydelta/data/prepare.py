"""From the names in the config to data sets on disk: checked first, then made or imported where they are not there yet.

``simulated`` and ``street`` are made by the simulator, and a folder in a known layout is imported. A data set (a folder
with a manifest) is used as it is.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydelta.config import BUILT_IN_SETS, Config, DataConfig, override
from raydelta.data.formats import detect_layout
from raydelta.data.importers import ImportOptions, import_dataset
from raydelta.data.listing import Listing, list_pictures
from raydelta.data.relabel import convert_dataset
from raydelta.data.shards import MANIFEST, BadItem, Domain, Manifest, list_ids, read_manifest
from raydelta.data.simulator.dataset import simulate_dataset, void_classes
from raydelta.data.simulator.scene import VERSION as SIMULATOR_VERSION
from raydelta.data.taxonomy import CAMVID11, Taxonomy
from raydelta.errors import UserError
from raydelta.progress import Progress
from raydelta.storage.files import explain, fingerprint, is_remote, open_address, shown, without_secrets

DOMAINS: tuple[Domain, ...] = ("real", "synthetic")


def check_data(config: Config) -> None:
    """Look at both sets, and make nothing: called before anything starts.

    Raises:
        UserError: a set is missing, damaged, in no known layout, or has no train split.
    """
    for domain in DOMAINS:
        name = getattr(config.data, domain)
        if name in BUILT_IN_SETS:
            continue
        if _is_source(name):
            _find_source(domain, name)
        else:
            _check_manifest(domain, name, read_manifest(name))


def prepare_data(config: Config, runs: Path) -> Config:
    """The config with ``data.synthetic`` and ``data.real`` replaced by complete data sets that go together.

    A data set that was imported before decides the classes: the simulator draws in them, and a folder is imported with
    them. Of two folders, or two data sets, the real one decides.

    Raises:
        UserError: a set is missing, has no train split, or the classes of the two cannot be brought together.
    """
    check_data(config)
    taxonomy: Taxonomy | None = None
    for domain in sorted(DOMAINS, key=lambda domain: _order(getattr(config.data, domain))):
        address = _open_or_make(domain, config, runs, taxonomy)
        config = override(config, {f"data.{domain}": address})
        taxonomy = read_manifest(address).taxonomy
    for domain in DOMAINS:
        name = getattr(config.data, domain)
        _check_manifest(domain, name, read_manifest(name))
    return config


def _check_manifest(domain: Domain, name: str, manifest: Manifest) -> None:
    if "train" not in manifest.splits:
        raise UserError(
            f"data.{domain} = {without_secrets(name)}: has the splits {', '.join(manifest.splits)}, but training needs "
            "one named train; import it with --split train=0.8,test=0.2"
        )
    if domain == "synthetic" and manifest.splits["train"].labelled < manifest.splits["train"].rows:
        raise UserError(f"{without_secrets(name)}: the expert needs a label for every synthetic training image")


def evaluation_split(manifest: Manifest) -> str | None:
    """The split that the table is about: ``test``, or ``val`` where the test labels are kept secret (Cityscapes)."""
    labelled = (name for name in ("test", "val") if name in manifest.splits and manifest.splits[name].labelled)
    return next(labelled, None)


def unseen_sequences(uri: str, split: str) -> list[str]:
    """Sequences of a split that the training split has no image of; empty if that is all of them."""
    seen = {sample.sequence for sample in list_ids(uri, "train")}
    sequences = {sample.sequence for sample in list_ids(uri, split)}
    unseen = sorted(sequences - seen)
    return unseen if len(unseen) < len(sequences) else []


def _is_source(name: str) -> bool:
    """Whether a set still has to be imported."""
    return name not in BUILT_IN_SETS and not is_remote(name) and not (Path(name) / MANIFEST).exists()


def _order(name: str) -> int:
    """Data sets first, as their classes are fixed, and folders last."""
    return 1 if name in BUILT_IN_SETS else 2 if _is_source(name) else 0


def _find_source(domain: Domain, name: str) -> tuple[Path, Listing, str]:
    """A folder to import, what is in it, and its layout."""
    source = Path(name)
    if not source.is_dir():
        raise UserError(
            f"data.{domain} = {name!r} is neither built in ({', '.join(BUILT_IN_SETS)}), nor a folder, nor an address"
        )
    source = source.resolve()
    listing = list_pictures(source)
    kind = detect_layout(listing)
    if kind is None:
        raise UserError(f"{source}: no layout that an importer knows; see raydelta data import --help")
    return source, listing, kind


def _open_or_make(domain: Domain, config: Config, runs: Path, taxonomy: Taxonomy | None) -> str:
    name = getattr(config.data, domain)
    if name in BUILT_IN_SETS:
        return _simulate(name, config.data, runs, taxonomy)
    if _is_source(name):
        return _import(domain, name, runs, taxonomy)
    address = name if is_remote(name) else str(Path(name).resolve())
    manifest = read_manifest(address)
    if taxonomy is None or manifest.taxonomy.classes == taxonomy.classes:
        return address
    return _convert(address, manifest, runs, taxonomy)


def _address(runs: Path, name: str) -> str:
    """Where a data set that is made belongs: beside the runs, on their disk or in their bucket."""
    return shown(runs / "data" / name)


def _is_made(address: str) -> bool:
    """Whether a data set is there and complete."""
    if not is_remote(address):
        return (Path(address) / MANIFEST).exists()
    files, path = open_address(address)
    try:
        return files.get_file_info(f"{path}/{MANIFEST}").is_file
    except OSError as error:
        raise explain(address, error) from error


def _simulate(name: str, data: DataConfig, runs: Path, taxonomy: Taxonomy | None) -> str:
    images = data.synthetic_images if name == "simulated" else data.real_images
    counts = {"train": images, "test": data.test_images}
    made_from: list[Any] = [name, counts, *data.size, SIMULATOR_VERSION]
    if taxonomy is not None and taxonomy.classes != CAMVID11.classes:
        made_from.append(taxonomy.model_dump())
        _tell_void(name, void_classes(taxonomy), taxonomy)
    target = _address(runs, f"{name}-{fingerprint(made_from)}")
    if not _is_made(target):
        progress = Progress(f"make {name}")
        manifest = simulate_dataset(
            BUILT_IN_SETS[name],
            target,
            counts=counts,
            width=data.width,
            height=data.height,
            seed=0,
            taxonomy=taxonomy or CAMVID11,
            progress=progress.update,
        )
        progress.finish(_summary(manifest.splits))
    return target


def _import(domain: Domain, name: str, runs: Path, taxonomy: Taxonomy | None) -> str:
    source, listing, kind = _find_source(domain, name)
    # Photographs that were labelled since the last import make another data set.
    files = [(file.path, file.version) for file in listing.files]
    classes = taxonomy.classes if taxonomy else None
    target = _address(runs, f"{source.name}-{fingerprint([str(source), kind, domain, classes, files])}")
    if _is_made(target):
        return target
    progress = Progress(f"import {source.name[:14]}")
    # A handful of photographs has labels.
    options = ImportOptions(kind=kind, domain=domain, taxonomy=taxonomy, allow_unlabelled=domain == "real")
    try:
        manifest = import_dataset(source, target, options, listing=listing, progress=progress.update)
    except UserError as error:
        if _is_made(target):  # another command has made it meanwhile
            return target
        if not isinstance(error, BadItem):
            raise
        way_out = f"raydelta data import {source} SET --skip-bad leaves such files out; then --{domain} SET"
        raise UserError(f"{error}; {way_out}") from error
    if manifest.options["dropped"]:
        _tell_void(str(source), manifest.options["dropped"], manifest.taxonomy)
    progress.finish(_summary(manifest.splits))
    return target


def _convert(address: str, manifest: Manifest, runs: Path, taxonomy: Taxonomy) -> str:
    """A copy of a data set with its labels in other classes, by name."""
    checksums = [shard.sha256 for split in manifest.splits.values() for shard in split.shards]
    made_from = [manifest.taxonomy.classes, taxonomy.model_dump(), checksums]
    target = _address(runs, f"{manifest.name}-{fingerprint(made_from)}")
    if not _is_made(target):
        progress = Progress(f"convert {manifest.name[:14]}")
        converted = convert_dataset(address, target, taxonomy, progress=progress.update)
        _tell_void(without_secrets(address), converted.options["dropped"], taxonomy)
        progress.finish(_summary(converted.splits))
    return target


def _tell_void(name: str, dropped: Sequence[str], taxonomy: Taxonomy) -> None:
    if dropped:
        warnings.warn(f"{name}: void, as {taxonomy.name} has no such class: {', '.join(dropped)}", stacklevel=3)


def _summary(splits: dict) -> str:
    return ", ".join(f"{name} {split.rows}" for name, split in splits.items()) + " images"
