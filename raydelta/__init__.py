"""raydelta: guided real-to-synthetic translation for segmentation with few labels.

The functions behind the commands. Each is imported when it is first asked for, so ``import raydelta`` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from raydelta.version import __version__ as __version__

if TYPE_CHECKING:
    from raydelta.config import load_config as load_config
    from raydelta.data.importers import import_dataset as import_dataset
    from raydelta.deploy.export import export as export
    from raydelta.deploy.model import load as load
    from raydelta.deploy.predict import predict as predict
    from raydelta.errors import UserError as UserError
    from raydelta.results.evaluate import evaluate as evaluate
    from raydelta.results.report import report as report
    from raydelta.selection.select import select as select
    from raydelta.tuning.single import train_expert as train_expert
    from raydelta.tuning.single import train_row as train_row
    from raydelta.tuning.single import train_translator as train_translator
    from raydelta.tuning.tune import tune as tune

_HOMES = {
    "UserError": "errors",
    "evaluate": "results.evaluate",
    "export": "deploy.export",
    "import_dataset": "data.importers",
    "load": "deploy.model",
    "load_config": "config",
    "predict": "deploy.predict",
    "report": "results.report",
    "select": "selection.select",
    "train_expert": "tuning.single",
    "train_row": "tuning.single",
    "train_translator": "tuning.single",
    "tune": "tuning.tune",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'raydelta' has no attribute {name!r}")
    return getattr(import_module(f"raydelta.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
