"""The data stage: from the names in the config to data sets on disk, built-in or imported ones made on the way.

``simulated`` and ``street`` are made by the simulator; a folder in a layout that an importer knows is imported; a data
set (it has a manifest) is used where it lies.
"""

import warnings
from pathlib import Path

from raydelta.config import BUILT_IN_SETS, Config, override
from raydelta.data.formats import detect_layout
from raydelta.data.importers import ImportOptions, import_dataset
from raydelta.data.listing import list_pictures
from raydelta.data.shards import MANIFEST, BadItem, Domain, Manifest, list_ids, read_manifest
from raydelta.data.simulator.dataset import simulate_dataset
from raydelta.data.simulator.scene import VERSION as SIMULATOR_VERSION
from raydelta.data.taxonomy import Taxonomy
from raydelta.errors import UserError
from raydelta.progress import Progress
from raydelta.storage import fingerprint, is_remote


def prepare_data(config: Config, runs: Path) -> Config:
    """The config with ``data.synthetic`` and ``data.real`` replaced by complete data sets that go together.

    Raises:
        UserError: a set is missing, has no train split, or the two have different taxonomies.
    """
    # A folder is imported with the classes of the other set; of two folders, the real one decides.
    domains: list[Domain] = ["real", "synthetic"]
    domains.sort(key=lambda domain: _is_source(getattr(config.data, domain)))
    taxonomy: Taxonomy | None = None
    for domain in domains:
        address = str(_open_or_make(domain, config, runs, taxonomy))
        config = override(config, {f"data.{domain}": address})
        taxonomy = read_manifest(address).taxonomy
    synthetic, real = read_manifest(config.data.synthetic), read_manifest(config.data.real)
    if synthetic.taxonomy.classes != real.taxonomy.classes:
        raise UserError(
            f"{config.data.synthetic} has the taxonomy {synthetic.taxonomy.name} and {config.data.real} has "
            f"{real.taxonomy.name}: import both with one taxonomy"
        )
    for uri, manifest in ((config.data.synthetic, synthetic), (config.data.real, real)):
        if "train" not in manifest.splits:
            raise UserError(f"{uri}: has the splits {', '.join(manifest.splits)}, but training needs one named train")
    if synthetic.splits["train"].labelled < synthetic.splits["train"].rows:
        raise UserError(f"{config.data.synthetic}: the expert needs a label for every synthetic training image")
    return config


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


def _open_or_make(domain: Domain, config: Config, runs: Path, taxonomy: Taxonomy | None) -> Path | str:
    data = config.data
    name = getattr(data, domain)
    if name in BUILT_IN_SETS:
        images = data.synthetic_images if name == "simulated" else data.real_images
        counts = {"train": images, "test": data.test_images}
        made_from = [name, counts, data.width, data.height, SIMULATOR_VERSION]
        target = runs / "data" / f"{name}-{fingerprint(made_from)}"
        if not (target / MANIFEST).exists():
            progress = Progress(f"make {name}")
            manifest = simulate_dataset(
                BUILT_IN_SETS[name],
                target,
                counts=counts,
                width=data.width,
                height=data.height,
                seed=0,
                progress=progress.update,
            )
            progress.finish(_summary(manifest.splits))
        return target
    if not _is_source(name):
        return name if is_remote(name) else Path(name).resolve()
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
    # Photographs that were labelled since the last import make another data set.
    files = [(file.path, file.version) for file in listing.files]
    classes = taxonomy.classes if taxonomy else None
    target = runs / "data" / f"{source.name}-{fingerprint([str(source), kind, domain, classes, files])}"
    if not (target / MANIFEST).exists():
        progress = Progress(f"import {source.name[:14]}")
        try:
            manifest = import_dataset(
                source,
                target,
                # A handful of photographs has labels.
                ImportOptions(kind=kind, domain=domain, taxonomy=taxonomy, allow_unlabelled=domain == "real"),
                listing=listing,
                progress=progress.update,
            )
        except UserError as error:
            if (target / MANIFEST).exists():  # another command has made it meanwhile
                return target
            if not isinstance(error, BadItem):
                raise
            bad = error
            way_out = f"raydelta data import {source} SET --skip-bad leaves such files out; then --{domain} SET"
            raise UserError(f"{bad}; {way_out}") from bad
        if manifest.options["dropped"]:
            warnings.warn(
                f"{source}: void, as {manifest.taxonomy.name} has no such class: "
                f"{', '.join(manifest.options['dropped'])}",
                stacklevel=2,
            )
        progress.finish(_summary(manifest.splits))
    return target


def _summary(splits: dict) -> str:
    return ", ".join(f"{name} {split.rows}" for name, split in splits.items()) + " images"
