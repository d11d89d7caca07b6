"""``best/`` of a sweep: the recommended model with its card, self-contained, as ``raydelta.load`` reads it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from raydelta.deploy.card import write_card
from raydelta.deploy.network import build, save
from raydelta.results.recommend import Recommended
from raydelta.storage.bucket import publish, remove
from raydelta.storage.files import replace_directory
from raydelta.training.job import Job

BEST = "best"


def write_best(directory: Path, jobs: Sequence[Job], recommended: Recommended | None) -> Path | None:
    """Write the recommended model into a sweep's directory and say where; what lay there before is replaced.

    Args:
        jobs: the jobs behind the rows of the table.
        recommended: None leaves no ``best/``.
    """
    target = directory / BEST
    job = next((job for job in jobs if recommended is not None and job.directory.name == recommended.stage), None)
    if job is None:
        remove(target)
        return None
    model = build(job)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / BEST
        save(model, made)
        write_card(job, model, [], "", made / "README.md")
        replace_directory(made, target)
        publish(target, whole=True)
    return target
