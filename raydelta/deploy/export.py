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
from raydelta.deploy.card import write_card, write_preprocessor_card
from raydelta.deploy.inputs import find_inputs
from raydelta.deploy.network import WEIGHTS, Deployed, build, choose_job, read_network, save
from raydelta.deploy.preprocessor import Preprocessor, choose_preprocessor
from raydelta.errors import UserError
from raydelta.storage.bucket import as_local
from raydelta.storage.files import is_remote
from raydelta.training.job import Job
from raydelta.version import __version__

CHECKED = 8  # photographs, at most
SCALES = (1.0, 0.75)  # that they are checked at
REQUIRED = 0.999  # share of the values of an exported model that have to be those of the original


@dataclass(frozen=True)
class Agreement:
    """How closely one exported model follows the original in torch, on images of one size."""

    model: str
    width: int
    height: int
    agreement: float  # share of the pixels with the same id; of a preprocessor's RGB values within 1 of the original's
    deviation: float  # of the logits, or of the normalised images, at most
    seconds: float  # of an image, on one thread of this machine's CPU
    torch_seconds: float


class Segmenting(nn.Module):
    """Photographs uint8 (N, H, W, 3) → ids uint8 (N, H, W) and logits (N, C, H, W)."""

    def __init__(self, model: Deployed) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.logits(images)
        return logits.max(1).indices.byte(), logits


Program = Segmenting | Preprocessor
"""What is exported: photographs → uint8 values and floats."""


@dataclass(frozen=True)
class Layout:
    """How the files and outputs of a program are called, and how far its uint8 values may be from the original's."""

    stem: str
    outputs: tuple[str, str]
    tolerance: int

    @property
    def onnx(self) -> str:
        """The name of the ONNX file."""
        return f"{self.stem}.onnx"

    @property
    def program(self) -> str:
        """The name of the ``torch.export`` file."""
        return f"{self.stem}.pt2"


MODEL = Layout("model", ("ids", "logits"), 0)
PREPROCESSOR = Layout("preprocessor", ("rgb", "normalised"), 1)  # rounded, so tiny differences show as one level


@dataclass(frozen=True)
class Exported:
    """What was exported, and how it was checked."""

    model: str  # the training that was exported
    method: str | None  # its row of the table
    images: str  # what the checks were made on, in words
    checks: list[Agreement]


def export(
    run: str | Path, out: Path, method: str | None = None, images: Sequence[str] = (), *, preprocessor: bool = False
) -> Exported:
    """Write ``model.onnx``, ``model.pt2``, what ``raydelta.load`` reads, and a card; check the first three.

    Args:
        method: which row of a sweep; the recommended one, if None.
        preprocessor: only what photographs go through before the expert (R2S, or matched colours), as
            ``preprocessor.onnx`` and ``preprocessor.pt2``, with a card.
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
    run = as_local(run)
    job = choose_preprocessor(run, method) if preprocessor else choose_job(run, method)
    model = build(job)
    program: Program = Preprocessor(model) if preprocessor else Segmenting(model)
    layout = PREPROCESSOR if preprocessor else MODEL
    words, photographs = _photographs(job, images)
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        if not preprocessor:
            save(model, beside)
        _write_programs(program, layout, beside)
        checks = [check for scale in SCALES for check in _check(program, layout, beside, _stack(photographs, scale))]
        write = write_preprocessor_card if preprocessor else write_card
        write(job, model, [vars(check) for check in checks], words, beside / "README.md")
        beside.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Exported(model.config.run, model.config.method, words, checks)


def _write_programs(model: Program, layout: Layout, folder: Path) -> None:
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
    example = torch.zeros(2, config.height + 9, 2 * config.width + 5, 3, dtype=torch.uint8)
    oblivious = _config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    # Oblivious: a size of 1 is no special case. The warnings are about the exporter's own code.
    with torch.no_grad(), oblivious, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(
                model, (example,), dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},), strict=False
            )
            torch.export.save(program, folder / layout.program, extra_files={"classes.json": metadata["classes"]})
            names = {"input_names": ["images"], "output_names": list(layout.outputs)}
            exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
        except Exception as error:  # the exporters know no common one; an architecture may not be traceable
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UserError(
                f"{config.run}: torch cannot export its network ({type(error).__name__}: {reason}); "
                "raydelta.load and raydelta predict take it as it is"
            ) from error
    assert exported is not None
    exported.model.metadata_props.update(metadata)
    exported.save(folder / layout.onnx)


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


def _check(model: Program, layout: Layout, folder: Path, images: Tensor) -> list[Agreement]:
    """Compare what lies in the folder with the model.

    Raises:
        UserError: an exported model gives other values.
    """
    program, session = torch.export.load(folder / layout.program).module(), _import_onnx()
    options = session.SessionOptions()
    options.intra_op_num_threads = 1
    onnx = session.InferenceSession(folder / layout.onnx, options, providers=["CPUExecutionProvider"])
    runs: dict[str, Callable[[Tensor], Any]] = {
        layout.onnx: lambda image: map(torch.from_numpy, onnx.run(layout.outputs, {"images": image.numpy()})),
        layout.program: program,
    }
    if isinstance(model, Segmenting):
        runs[WEIGHTS] = Segmenting(read_network(folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            true_values, true_floats, torch_seconds = _timed(model, images)
            checks = []
            for name, run in runs.items():
                values, floats, seconds = _timed(run, images)
                same = (values.int() - true_values.int()).abs() <= layout.tolerance
                agreement = float(same.float().mean())
                deviation = float((floats - true_floats).abs().max())
                size = images.shape[2], images.shape[1]
                checks.append(Agreement(name, *size, agreement, deviation, seconds, torch_seconds))
    finally:
        torch.set_num_threads(threads)
    for check in checks:
        if check.agreement < REQUIRED:
            raise UserError(
                f"{model.config.run}: {check.model} gives the {layout.outputs[0]} of the original model on only "
                f"{check.agreement:.2%} of the pixels of {len(images)} images; {REQUIRED:.1%} are needed, so "
                "nothing was written; try other versions of torch and onnxruntime"
            )
    return checks


def _timed(run: Callable[[Tensor], Any], images: Tensor) -> tuple[Tensor, Tensor, float]:
    """The values and floats of every image, asked one by one, and the median of the seconds."""
    run(images[:1])  # the first is slower
    values, floats, seconds = list[Tensor](), list[Tensor](), list[float]()
    for image in images:
        start = time.perf_counter()
        found = run(image[None])
        seconds.append(time.perf_counter() - start)
        for kept, one in zip((values, floats), found, strict=True):
            kept.append(one)
    return torch.cat(values), torch.cat(floats), median(seconds)


def _import_onnx() -> Any:
    """onnxruntime, where all that ONNX needs is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs {error.name}: pip install 'raydelta[export]'") from error
    return onnxruntime
