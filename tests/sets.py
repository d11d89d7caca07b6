"""Small data sets that are written without Ray, and what is in them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raydelta.config import Config
from raydelta.data.labels import choose_labels
from raydelta.data.shards import FOOTER, SCHEMA, Manifest, Shard, Split
from raydelta.data.simulator.scene import Look, simulate
from raydelta.data.streams import load_images
from raydelta.data.taxonomy import CAMVID11
from raydelta.data.writing import encode_jpeg, encode_label
from raydelta.training.job import Job, label_ids

WIDTH, HEIGHT, SYNTHETIC, REAL = 64, 32, 22, 20
STEPS = {"expert.steps": 2, "translator.steps": 3, "student.steps": 2, "compute.precision": "fp32"}
REAL_NAMES = [(f"real-{index:02d}", f"drive {index % 4}") for index in range(REAL)]

Labelling = Callable[[str, np.ndarray], bytes | None]


def every_label(name: str, mask: np.ndarray) -> bytes | None:
    return encode_label(mask)


def no_label(name: str, mask: np.ndarray) -> bytes | None:
    return None


def bought_labels(config: Config) -> Labelling:
    """The labels that the budget buys; reading any other one fails."""
    bought = {
        name for names in choose_labels(REAL_NAMES, config.labels, config.seed, config.labels.budget) for name in names
    }
    return lambda name, mask: encode_label(mask) if name in bought else b"reading this label is a fault"


def write_set(target: Path, look: Look, names: list[tuple[str, str]], label: Labelling = every_label) -> str:
    """A data set with one training shard, written without Ray; its manifest promises a test shard that is not there."""
    target.mkdir()
    rows = []
    for index, (name, sequence) in enumerate(names):
        image, mask = simulate(index, look=look, width=WIDTH, height=HEIGHT)
        row = {
            "id": name,
            "sequence": sequence,
            "image": encode_jpeg(Image.fromarray(image)),
            "label": label(name, mask),
        }
        rows.append(row | {"height": HEIGHT, "width": WIDTH})
    unlabelled = [row["id"] for row in rows if row["label"] is None]
    footer = {"inputs": "", "pixels": [0] * len(CAMVID11), "void": 0, "unlabelled": unlabelled, "skipped": []}
    with pq.ParquetWriter(target / "train-00000.parquet", SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
        writer.add_key_value_metadata({FOOTER: json.dumps(footer)})
    content = (target / "train-00000.parquet").read_bytes()
    counts = {"rows": len(rows), "labelled": len(rows) - len(unlabelled), "bytes": len(content)}
    splits = {}
    for split in ("train", "test"):
        shard = Shard(file=f"{split}-00000.parquet", sha256=hashlib.sha256(content).hexdigest(), **counts)
        splits[split] = Split(shards=[shard], pixels=[0] * len(CAMVID11), void=0)
    manifest = Manifest(
        name=target.name,
        domain="synthetic" if look == "synthetic" else "real",
        taxonomy=CAMVID11,
        splits=splits,
        source="test",
        options={},
    )
    (target / "manifest.json").write_text(manifest.model_dump_json())
    return str(target)


def pixels_of(job: Job) -> dict[str, np.ndarray]:
    images = load_images(job.config.data.real, "train", (WIDTH, HEIGHT), labels=False)
    return {"id": np.array(images.ids), "pixels": images.pixels}


def unused(job: Job) -> set[str]:
    return {name for name, _ in REAL_NAMES} - {name for names in label_ids(job) for name in names}
