"""The project file: the settings of a project in its own folder, found by ``tune`` and ``train`` there."""

from pathlib import Path

from raydelta.errors import UserError
from raydelta.storage.files import is_remote, write_atomically

FILE = "raydelta.yaml"

TEMPLATE = """\
# Settings of this project. raydelta tune and raydelta train read this file in the current folder.
# A line here overrides the preset; section.field=value on the command line overrides this file.

data:
  synthetic: {synthetic}  # labelled synthetic images: a folder, a data set, an address (s3://...) or simulated
  real: {real}  # photographs, some of them labelled; street is a stand-in
  width: 256  # pixels; multiples of 16
  height: 128

labels:
  budget: 14  # labelled photographs to train on
  validation: 8  # labelled photographs that choose the best trial

# translator:
#   steps: 160  # more steps, better translations
# student:
#   steps: 80
# tracking:
#   mlflow: http://127.0.0.1:5000
"""


def write_project(folder: Path, synthetic: str = "simulated", real: str = "street") -> Path:
    """Write a commented project file for two data sets.

    Raises:
        UserError: there is one already, or a data set is no folder.
    """
    path = folder / FILE
    if path.exists():
        raise UserError(f"{path}: is there already; edit it, or remove it first")
    for name, value, built_in in (("synthetic", synthetic, "simulated"), ("real", real, "street")):
        if value != built_in and not is_remote(value) and not (folder / value).is_dir():
            raise UserError(f"--{name} {value}: no such folder; give a folder, an address (s3://...) or {built_in}")
    write_atomically(path, TEMPLATE.format(synthetic=_quoted(synthetic), real=_quoted(real)))
    return path


def find_project(folder: Path) -> Path | None:
    """The project file of a folder, if there is one."""
    path = folder / FILE
    return path if path.is_file() else None


def _quoted(value: str) -> str:
    return value if value.replace("/", "").replace("-", "").replace("_", "").isalnum() else f"'{value}'"
