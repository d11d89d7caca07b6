import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import typer
from nbclient import NotebookClient

import raydelta
from raydelta.cli import app
from raydelta.config import load_config
from raydelta.parsing import flatten
from raydelta.recipes import METHODS
from raydelta.search_space import Space, load_space
from tests.tiny import TINY

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> tuple[list[str], list[str]]:
    """What a page says of the command line: whole ones, from its code blocks, and what it names within its text."""
    text = page.read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```bash\n(.*?)^```|^((?: {4}.*\n)+)", text, flags=re.M | re.S)
    lines = [
        part.partition("  #")[0]
        for block in blocks
        for line in "".join(block).splitlines()
        for part in line.split("&&")
    ]
    whole = [match[1] for line in lines if (match := re.match(r"(?:\w+=\S+ )*(raydelta [a-z][^`]*)$", line.strip()))]
    named = [" ".join(code.split()) for code in re.findall(r"`(raydelta [^`]+)`", text)]
    return whole, [code for code in named if not set("[|") & set(code)]  # an alternative of a list is no command


def check(line: str, whole: bool) -> None:
    """That command, options, search space and fields exist; of a whole line also that nothing is missing.

    Raises:
        Exception: of the parser, or a ``KeyError`` of what there is not.
    """
    arguments = [argument for argument in shlex.split(line)[1:] if argument != "…"]
    command: Any = typer.main.get_command(app)
    name = ""
    while hasattr(command, "commands"):
        if not arguments and not whole:
            return
        name = arguments.pop(0)
        command = command.commands[name]
    options = {option: None for parameter in command.params for option in parameter.opts}
    fields = flatten(load_config().model_dump()) | flatten(Space().model_dump())
    for argument in arguments:
        if argument.startswith("--"):
            options[argument]
        elif re.match(r"\w+(\.\w+)+=", argument):
            fields[argument.partition("=")[0]]
    if whole:
        context = command.make_context(name, arguments)
        for space in context.params.get("arguments") or []:
            if name == "tune" and "=" not in space:
                load_space(space)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_docs_exists(page: Path) -> None:
    whole, named = commands(page)
    for line in [*whole, *named]:
        try:
            check(line, whole=line in whole)
        except Exception as error:
            pytest.fail(f"{page.name}: {line!r}: {type(error).__name__}: {error}")


def modules() -> dict[str, Path]:
    """Dotted name below ``raydelta`` or ``benchmarks`` → file; a module of a room also by its own name alone."""
    found = {}
    for package in ("raydelta", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found |= {".".join(parts[start:]): path for start in range(len(parts))}
    return found


def defined(source: ast.AST) -> set[str]:
    """Every name that a module defines or imports at any depth: functions, classes, fields, constants."""
    names = set()
    for node in ast.walk(source):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.alias(name=name, asname=alias):
                names.add(alias or name.rpartition(".")[2])
            case ast.Constant(value=str(name)) if name.isidentifier():  # a name that is served by __getattr__
                names.add(name)
    return names


FOLDERS = ("raydelta", "tests", "benchmarks", "docs", "clusters", "tune_spaces", ".github")
FILE = r"\.(json|jsonl|csv|yaml|md|png|pt2|onnx|safetensors|html|txt|ipynb|toml)$"
TO_BE_WRITTEN = r"\b(yours|DATE|NAME)\b"


def exists(token: str) -> bool:
    """Whether a path, a module or a ``module.symbol`` is in the repository; true for what is neither."""
    known, head = modules(), token.split("/")[0].split(".")[0]
    if "/" in token:
        inside = token.startswith(FOLDERS) and not re.search(TO_BE_WRITTEN, token)
        return not inside or any(ROOT.glob(token.rstrip("/")))
    if token.endswith(".py"):
        return token == "__init__.py" or token.removesuffix(".py") in known
    if not re.fullmatch(r"[a-z_]+(\.\w+)+", token) or re.search(FILE, token) or token in known:
        return True
    if token in flatten(load_config().model_dump()) or head in Space.model_fields:
        return True
    module, _, symbol = token.rpartition(".")
    if module in known:
        return symbol in defined(ast.parse(known[module].read_text()))
    return head not in FOLDERS


def missing(text: str) -> list[str]:
    """What stands between backticks and does not exist."""
    return [token for token in dict.fromkeys(re.findall(r"`([^`\s]+)`", text)) if not exists(token)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_symbol_of_the_docs_exists(page: Path) -> None:
    assert missing(page.read_text()) == []


def test_contributing_names_nothing_that_is_not_defined() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = {
        name
        for name in re.findall(r"`([A-Za-z_]\w+)`", text)
        if "_" in name or name.isupper() or re.fullmatch(r"[A-Z]\w*[a-z]\w*", name)
    }
    sources = [path for folder in ("raydelta", "tests") for path in (ROOT / folder).rglob("*.py")]
    known = modules().keys() | set().union(*(defined(ast.parse(path.read_text())) for path in sources))
    assert names - known == set()


def test_every_row_of_the_table_is_explained() -> None:
    text = (ROOT / "docs" / "method.md").read_text()
    named = {name for row in re.findall(r"^\| ([^|]+) \|", text, re.M) for name in (row.strip(), *row.split(", "))}
    named |= set(re.findall(r"\*([^*\n]+)\*", text))
    assert METHODS.keys() - named == set()


def test_a_path_or_symbol_that_is_gone_is_noticed() -> None:
    here = ["raydelta/data/formats.py", "student.steps", "recipes.RECIPES", "raydelta.load", "loop.py", "torch.export"]
    gone = ["raydelta/importers.py", "recipes.RECEIPTS", "raydelta.importers.FORMATS", "methods.py", "benchmarks.none"]
    assert missing(" ".join(f"`{token}`" for token in [*here, *gone])) == gone


def test_commands_are_found_and_wrong_ones_are_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`raydelta tune labels.budget=1`, `raydelta tune [SPACE]`, raydelta in a line of prose\n\n"
        "```bash\nA=b raydelta tune \\\n --resume   # goes on\npip install . && raydelta doctor\n```\n"
    )
    assert commands(page) == (["raydelta tune   --resume", "raydelta doctor"], ["raydelta tune labels.budget=1"])
    for wrong in (
        *("raydelta tun", "raydelta data", "raydelta select RUN --county 3", "raydelta select RUN"),
        *("raydelta tune laptops", "raydelta train expert labels.bugdet=1", "raydelta select RUN --count many"),
    ):
        with pytest.raises(Exception, match=r"."):
            check(wrong, whole=True)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """With the smallest settings in the cell that is tagged for it, as papermill would put them.

    Sibling: docs.yml runs it as it is, on every change.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    enough = {"data.real_images": 60}  # of five frames in a row one is chosen
    parameters.source = f"runs = {str(tmp_path / 'runs')!r}\nsettings = {TINY | enough!r}"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3, "data, strips, choice"
    assert any("synthetic only" in output.get("data", {}).get("text/plain", "") for output in outputs), "the table"
    assert "raydelta train translator" in notebook.cells[-2].outputs[0].text
    assert len(list((tmp_path / "runs").glob("translator-*/selection-*/images/*"))) == 6


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-D", "nb_execution_mode=off"]
    result = subprocess.run([*build, "docs", tmp_path / "site"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    pages = {path.name: path.read_text() for path in (tmp_path / "site").glob("*.html")}
    assert {
        "index.html",
        "quickstart.html",
        "own-data.html",
        "cluster.html",
        "faq.html",
        "reference.html",
    } <= pages.keys()
    for name, text in pages.items():
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]+src="([^"]+)"', text)
        fetched += re.findall(r'<link(?![^>]+rel="(?:index|search|next|prev|canonical)")[^>]+href="([^"]+)"', text)
        assert not [address for address in fetched if "//" in address and not address.startswith("data:")], name
    styles = [path.read_text() for path in (tmp_path / "site" / "_static").rglob("*.css")]
    assert not [text for text in styles if re.search(r"(@import|url\()\s*[\"']?(https?:)?//", text)]
    for function in raydelta.__all__:
        assert f'id="raydelta.{function}"' in pages["reference.html"], function
