"""The built-in data sets: simulated street scenes as shards, in the synthetic look or the stand-in for photographs."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import get_args

from PIL import Image

from raydelta.data.shards import Description, Item, Manifest, OnProgress, StoredRow
from raydelta.data.simulator.scene import Look, simulate
from raydelta.data.taxonomy import get_taxonomy
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
    progress: OnProgress = lambda done, total, note: None,
) -> Manifest:
    """Make a data set with the built-in simulator: ``synthetic``, or ``street`` as the stand-in for photographs.

    Args:
        counts: images per split (train, val, test); the splits share no scene.
        width, height: of the images, in pixels.
    """
    if look not in get_args(Look):
        raise UserError(f"look {look!r}: one of {', '.join(get_args(Look))}")
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
        partial(encode_scene, look=look, width=width, height=height, seed=seed),
        Description(
            name="simulated" if look == "synthetic" else STAND_IN,
            domain="synthetic" if look == "synthetic" else "real",
            taxonomy=get_taxonomy("camvid11"),
            source=f"built-in simulator, look {look!r}",
            options={"width": width, "height": height, "seed": seed},
        ),
        rows_per_shard=SCENES_PER_SHARD,
        progress=progress,
    )


def encode_scene(item: Item, look: Look, width: int, height: int, seed: int) -> StoredRow:
    """Render one scene of the simulator; ``item.image`` is its index."""
    image, mask = simulate(int(item.image), seed=seed, look=look, width=width, height=height)
    encoded = encode_jpeg(Image.fromarray(image))
    return StoredRow(
        id=item.id, sequence=item.sequence, image=encoded, label=encode_label(mask), height=height, width=width
    )
