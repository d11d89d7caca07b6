"""What several test modules train, the smallest config that still runs everything, and how they end what they start."""

import contextlib
import os
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from benchmarks.common import family_of

TINY: dict[str, object] = {
    "data.width": 64,
    "data.height": 32,
    "data.synthetic_images": 24,
    "data.real_images": 20,
    "data.test_images": 8,
    "labels.budget": 4,
    "labels.validation": 2,
    "segmenter.architecture": "lean",
    "segmenter.width": 6,
    "expert.steps": 6,
    "expert.batch": 4,
    "generator.width": 4,
    "generator.blocks": 1,
    "discriminator.width": 4,
    "translator.steps": 6,
    "translator.batch": 2,
    "student.steps": 2,
    "student.batch": 4,
    "compute.report_every": 2,
    "compute.checkpoint_every": 2,
}

UNET: dict[str, object] = {
    "segmenter.architecture": "unet",
    "segmenter.depth": 3,
    "segmenter.decoder_channels": [16, 8, 8],
}
"""In place of the segmenter of ``TINY``: one of a library."""

TINY_ARGUMENTS = [f"{key}={value}" for key, value in TINY.items()]


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Python 3.11 before 3.11.4 knows no filter."""
    archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def kill_family(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started, at once: ``ray start`` takes half a minute to do it in peace."""
    for pid in family_of(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
