import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raydelta.config import save_config
from raydelta.training.job import record_methods


@pytest.fixture
def travelled(trained: dict[str, Any], tmp_path: Path) -> Path:
    """A sweep and its trainings copied elsewhere, their data sets out of reach."""
    home = trained["translator"].directory.parent
    sweep = home / "tune-travels"
    sweep.mkdir(exist_ok=True)
    save_config(trained["translator"].config, sweep / "best.yaml")
    record_methods(sweep, trained["translator"].config, trained["expert"].directory)
    there = tmp_path / "there"
    shutil.copytree(home, there, ignore=shutil.ignore_patterns("tune-test", "tune-rows", "old-*"))
    for file in there.rglob("*"):
        if file.name in ("config.yaml", "best.yaml"):
            file.write_text(file.read_text().replace(str(home.parent), "/nowhere"))
            assert "/nowhere" in file.read_text() and str(home.parent) not in file.read_text()
            meta = file.parent / "meta.json"
            if meta.exists():  # the digest of what was changed
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                tree = json.loads(meta.read_text())
                meta.write_text(json.dumps(tree | {"sha256": tree["sha256"] | {file.name: digest}}))
    return there
