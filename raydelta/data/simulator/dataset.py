"""The built-in data sets: simulated street scenes as shards, in the synthetic look or the stand-in for photographs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from raydelta.data.shards import Description, Item, Manifest, OnProgress, StoredRow
from raydelta.data.simulator.scene import Look, simulate
from raydelta.data.taxonomy import CAMVID11, IGNORE, Taxonomy
from raydelta.data.writing import encode_jpeg, encode_label, write_dataset
from raydelta.errors import UserError

STAND_IN = "street-stand-in"
"""Name of the simulated photographs, wherever they are shown."""
# Every split draws from scenes of its own, and growing one leaves the others as they are.
FIRST_SCENE = {"train": 0, "val": 1_000_000, "test": 2_000_000}
SEQUENCES = 4  # per simulated split
SCENES_PER_SHARD = 50  # few, as rendering costs more than reading and should keep every core busy


def simulate_dataset(
    look: Look,
    target: str | Path,
    *,
    counts: Mapping[str, int],
    width: int,
    height: int,
    seed: int = 0,
    taxonomy: Taxonomy = CAMVID11,
    progress: OnProgress = lambda done, total, note: None,
) -> Manifest:
    """Make a data set with the built-in simulator: ``synthetic``, or ``street`` as the stand-in for photographs.

    Args:
        counts: images per split (train, val, test); the splits share no scene.
        width, height: of the images, in pixels.
        taxonomy: whose ids the masks have; what is drawn and has no class there becomes void.

    Raises:
        UserError: bad arguments, no class of the taxonomy is drawn, or the target cannot be written.
    """
    if look not in get_args(Look):
        raise UserError(f"look {look!r}: one of {', '.join(get_args(Look))}")
    lookup = _lookup(taxonomy)
    splits = {}
    for split, count in counts.items():
        if split not in FIRST_SCENE:
            raise UserError(f"split {split!r}: a simulated set has {', '.join(FIRST_SCENE)}")
        first = FIRST_SCENE[split]
        splits[split] = [
            Item(
                f"{look}-{first + index:07d}", f"{look}-{split}-{index * SEQUENCES // count}", str(first + index), None
            )
            for index in range(count)
        ]
    return write_dataset(
        target,
        splits,
        partial(encode_scene, look=look, width=width, height=height, seed=seed, lookup=lookup),
        Description(
            name="simulated" if look == "synthetic" else STAND_IN,
            domain="synthetic" if look == "synthetic" else "real",
            taxonomy=taxonomy,
            source=f"built-in simulator, look {look!r}",
            options={"width": width, "height": height, "seed": seed},
        ),
        rows_per_shard=SCENES_PER_SHARD,
        progress=progress,
    )


def void_classes(taxonomy: Taxonomy) -> list[str]:
    """What the simulator draws and a taxonomy has no class for."""
    return [name for name in CAMVID11.classes if taxonomy.find(name) == IGNORE]


def _lookup(taxonomy: Taxonomy) -> tuple[int, ...]:
    """The taxonomy's id of every class that the simulator draws."""
    ids = tuple(taxonomy.find(name) for name in CAMVID11.classes)
    if set(ids) == {IGNORE}:
        raise UserError(
            f"the simulator draws {', '.join(CAMVID11.classes)}, and none of them is a class of {taxonomy.name} "
            f"({', '.join(taxonomy.classes)}): name them under `also:` in its file"
        )
    return ids


def encode_scene(
    item: Item,
    look: Look,
    width: int,
    height: int,
    seed: int,
    lookup: Sequence[int] = tuple(range(len(CAMVID11))),
) -> StoredRow:
    """Render one scene of the simulator.

    Args:
        item: its ``image`` is the scene's index.
        lookup: the id in the mask of each class that is drawn.
    """
    image, mask = simulate(int(item.image), seed=seed, look=look, width=width, height=height)
    label = np.array(lookup, dtype=np.uint8)[mask]
    encoded = encode_jpeg(Image.fromarray(image))
    return StoredRow(
        id=item.id, sequence=item.sequence, image=encoded, label=encode_label(label), height=height, width=width
    )
