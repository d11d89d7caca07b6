"""What is shipped: the wheel holds the whole package, the sdist builds the same one, the image copies what exists."""

import contextlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.tiny import unpack

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def build(target: str, source: Path, folder: Path) -> Path:
    """Build a wheel or an sdist without the network, as ``python -m build`` does with it."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    (made,) = folder.iterdir()
    return made


def package_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.startswith("raydelta/")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    ours = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "raydelta").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package_files(wheel) == ours
    for kind in ("presets", "tune_spaces", "data/taxonomies", "data/tables", "results/templates"):
        assert any(name.startswith(f"raydelta/{kind}/") and not name.endswith(".py") for name in ours), kind


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "raydelta = raydelta.cli:main" in archive.read(entry).decode()


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", ROOT, tmp_path / "sdist")) as archive:
        unpack(archive, tmp_path)
    (source,) = tmp_path.glob("raydelta-*/")
    assert package_files(build("wheel", source, tmp_path / "again")) == package_files(wheel)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_tested_set_meets_every_requirement() -> None:
    """A floor above what constraints.txt pins would fail at install; a package that is not pinned is not tested."""
    lines = [line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {normal(name): version for name, _, version in lines}
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if requirement.name != "raydelta":
            pin = pins.get(normal(requirement.name))
            assert pin and requirement.specifier.contains(pin), f"{requirement}: constraints.txt has {pin}"


def test_what_is_pinned_takes_every_python_that_is_promised() -> None:
    """The first release of each: Debian 12 has 3.11.2, and a pin that asked for 3.11.5 could not be installed there."""
    refused = []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        with contextlib.suppress(metadata.PackageNotFoundError):  # of other machines
            asked = metadata.metadata(line.partition("==")[0]).get("Requires-Python") or ""
            refused += [
                f"{line}: {asked}" for each in ("3.11.0", "3.12.0", "3.13.0") if each not in SpecifierSet(asked)
            ]
    assert not refused


def test_the_image_copies_what_there_is() -> None:
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    assert copied and all((ROOT / source).exists() for source in copied)
    assert 'ENTRYPOINT ["raydelta"]' in lines


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_and_no_more_unless_it_publishes(path: Path) -> None:
    flow = yaml.safe_load(path.read_text())
    assert flow["permissions"] == {"contents": "read"}
    for name, job in flow["jobs"].items():
        assert job["timeout-minutes"] <= 180, name
        assert job.get("permissions", {}).keys() <= ({"id-token"} if name == "publish" else set()), name
        for step in job["steps"]:
            for module in re.findall(r"python -m (benchmarks\.\w+)", step.get("run", "")):
                assert (ROOT / Path(*module.split(".")).with_suffix(".py")).exists(), module
            for test in re.findall(r"tests/[\w/.]+", step.get("run", "")):
                assert (ROOT / test).exists(), test
