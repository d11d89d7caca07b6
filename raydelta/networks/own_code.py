"""An expert by ``module:function`` of the user's code: called once, and from then on a ``torch.export`` program.

Only the command line and the arguments of ``tune`` may name code. Whatever else asks for an expert reads the program's
file, as ``own_expert`` does, so a config, a space or a run directory of a stranger runs nothing.
"""

import hashlib
import importlib
import io
import re
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from raydelta.errors import UserError
from raydelta.storage.files import write_atomically

EXAMPLE = (2, 3, 64, 128)
"""Shape of the images that the network is traced with; any number and size of them may follow."""


def is_code(model: object) -> bool:
    """Whether ``expert.model`` has the form ``module:function``."""
    return isinstance(model, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", model) is not None


def refuse_code(model: str | None) -> None:
    """Refuse ``module:function`` of a config: nobody knows who wrote that.

    Raises:
        UserError: it is one.
    """
    if is_code(model):
        raise UserError(
            f"expert.model = {model}: code runs only if you name it on the command line (expert.model={model}); a "
            "config file or a space can only name a file"
        )


def export_code(name: str, folder: Path) -> Path:
    """Call ``module:function`` and write the network that it returns as a ``torch.export`` program.

    The module is looked for in the current folder and among what is installed.

    Args:
        folder: gets the file, named after the content: the same network is the same file.

    Raises:
        UserError: there is no such function, it fails, or torch cannot export what it returns.
    """
    network = _call(name).eval().cpu()
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic},)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(network, (torch.zeros(EXAMPLE),), dynamic_shapes=shapes, strict=False)
            path = folder / f"{name.replace(':', '-')}-{_digest(program)}.pt2"
            if not path.exists():
                content = io.BytesIO()
                torch.export.save(program, content)
                write_atomically(path, content.getvalue())
        except UserError:
            raise
        except Exception as error:  # of anybody's network
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"expert.model = {name}: torch.export cannot trace its network for images of any size "
                f"({type(error).__name__}: {reason}); save it as TorchScript, and give that file"
            ) from error
    return path


def _call(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # as python -m does
        sys.path.insert(0, here)
    try:
        network = getattr(importlib.import_module(module), function)()
    except Exception as error:  # of the user's code
        raise UserError(f"expert.model = {name}: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
    if not isinstance(network, nn.Module):
        raise UserError(f"expert.model = {name}: returned {type(network).__name__}, not a torch.nn.Module")
    return network


def _digest(program: torch.export.ExportedProgram) -> str:
    digest = hashlib.sha256(program.graph_module.code.encode())
    for key, value in sorted({**program.state_dict, **program.constants}.items()):
        digest.update(key.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
