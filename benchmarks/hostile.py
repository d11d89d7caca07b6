"""Hostile inputs through the real command line, and mutated images through the readers: the counts in docs/security.md.

    python -m benchmarks.hostile [--only DOOR …] [--images 14352] [--seconds 60] [--gib 3] [--json FILE]

Each input gets a fresh folder and a process of its own with limits on time and memory. Counted are tracebacks, hangs,
processes out of memory, and files written or removed outside the folder that the command was given to write.
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import write_json
from benchmarks.hostile_images import decode_mutated, list_hostile_images
from benchmarks.hostile_inputs import Attack, list_attacks, make_base

ALLOWED = "work"
"""The one folder of an input's own folder that its command may write to, beside its home and temporary directory."""
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}


class Verdict(NamedTuple):
    """What an input came to."""

    door: str
    name: str
    outcome: str  # fine, traceback, hang, memory or outside
    said: str


def run(attack: Attack, base: Path, folder: Path, seconds: float, gib: float) -> Verdict:
    """Give one input to the command line, in a child of this process."""
    for name in ("home", "temporary", ALLOWED):
        (folder / name).mkdir(parents=True)
    shutil.copytree(base, folder / "base", symlinks=True)
    arguments = attack.prepare(folder)
    before = _digest(folder)
    outside = folder / "outside.txt"
    log = folder / "log.txt"
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, attack, folder, outside, log, gib)
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.005)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said = log.read_text(errors="replace") if log.exists() else ""
    lines = said.strip().splitlines()
    outcome = "fine"
    if not ended[0]:
        outcome = "hang"
    elif "MemoryError" in said or "bad_alloc" in said or os.waitstatus_to_exitcode(ended[1]) == -signal.SIGKILL:
        outcome = "memory"
    elif "Traceback" in said or os.waitstatus_to_exitcode(ended[1]) not in (0, 1, 2):
        outcome = "traceback"
    elif "\x1b" in said or outside.exists() or _digest(folder) != before:
        outcome = "outside"
        lines += outside.read_text().splitlines()[:3] if outside.exists() else []
    return Verdict(attack.door, attack.name, outcome, lines[-1][:300] if lines else "")


def _be_the_command(arguments: list[str], attack: Attack, folder: Path, outside: Path, log: Path, gib: float) -> None:
    """Become the command line; does not return."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(folder / ALLOWED)
    os.environ |= {"HOME": str(folder / "home"), "TMPDIR": str(folder / "temporary"), **attack.environment}
    tempfile.tempdir = None
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + int(gib * 2**30),) * 2)
    allowed = [str(folder / name) for name in (ALLOWED, "home", "temporary")] + ["/dev/"]
    if arguments[0] == "report":
        allowed.append(arguments[1])  # the page's place

    def listen(event: str, given: tuple[object, ...]) -> None:
        if event not in EVENTS or (event == "open" and not _writes(given)):
            return
        for each in given[: 2 if event in ("os.rename", "os.link") else 1]:
            if not isinstance(each, str | bytes | os.PathLike):
                continue
            path = os.path.abspath(os.fsdecode(each))  # noqa: PTH100 - as it is: links are not followed
            if path != str(outside) and not path.startswith(tuple(allowed)):
                descriptor = os.open(outside, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.write(descriptor, f"{event} {path}\n".encode(errors="replace"))
                os.close(descriptor)

    sys.dont_write_bytecode = True
    sys.argv = ["raydelta", *arguments]
    code = 1
    try:
        from raydelta.cli import main

        sys.addaudithook(listen)
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _writes(given: tuple[object, ...]) -> bool:
    mode, flags = given[1], given[2]
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _digest(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file that the command may not touch: size and time of change. It may write beside what it evaluates."""
    left_out = {ALLOWED, "home", "temporary", "log.txt", "outside.txt", "base"}
    files = (path for top in folder.iterdir() if top.name not in left_out for path in [top, *top.rglob("*")])
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in files if not path.is_dir()}


def run_all(only: list[str], seconds: float, gib: float) -> Iterator[Verdict]:
    """All inputs, one after another."""
    with tempfile.TemporaryDirectory(prefix="raydelta-hostile-") as temporary:
        root = Path(temporary)
        base = root / "base"
        command = [sys.executable, "-m", "benchmarks.hostile", "--base", str(base)]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL
        )  # with Ray, which the inputs' processes are without
        _import_everything()
        for number, attack in enumerate(list_attacks(base)):
            if not only or attack.door in only:
                folder = root / f"{number}"
                yield run(attack, base, folder, seconds, gib)
                shutil.rmtree(folder, ignore_errors=True)
        if not only or "import" in only:
            yield from _import_images(root, seconds)


def _import_everything() -> None:
    """Once, and not in every child."""
    import torch

    torch.set_num_threads(1)
    import segmentation_models_pytorch  # noqa: F401

    import raydelta.deploy.predict
    import raydelta.results.report
    import raydelta.selection.bought
    import raydelta.tuning.tune

    raydelta.results.report._bundle()  # of every page; kept by the process


def _import_images(root: Path, seconds: float) -> Iterator[Verdict]:
    """Hostile photographs and masks in one import: each has to be left out by name, or taken."""
    names = list_hostile_images(root / "photographs")
    command = [sys.executable, "-m", "raydelta.cli", "data", "import", str(root / "photographs"), str(root / "set")]
    command += ["--kind", "folder", "--ids", str(root / "photographs" / "ids.yaml"), "--skip-bad", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10 * seconds, errors="replace")
    said = done.stdout + done.stderr
    whole = "Traceback" not in said and done.returncode == 0 and "\x1b" not in said
    for name in names:
        yield Verdict("import", name, "fine" if whole else "traceback", said.strip()[-200:])


def main() -> None:
    """Run, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--images", type=int, default=14_352)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--gib", type=float, default=3)
    parser.add_argument("--json")
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.base:
        make_base(options.base)
        return
    verdicts = []
    for verdict in run_all(options.only, options.seconds, options.gib):
        verdicts.append(verdict)
        if verdict.outcome != "fine":
            print(f"{verdict.outcome:<10} {verdict.door}: {verdict.name}: {verdict.said}", flush=True)
    counts = Counter(verdict.outcome for verdict in verdicts)
    doors = Counter(verdict.door for verdict in verdicts)
    images = decode_mutated(options.images) if options.images else {}
    print(f"{len(verdicts)} inputs: " + ", ".join(f"{count} × {door}" for door, count in doors.items()))
    print(", ".join(f"{counts[name]} {name}" for name in ("fine", "traceback", "hang", "memory", "outside")))
    print(f"{options.images} mutated images: " + ", ".join(f"{count} {name}" for name, count in images.items()))
    result = {"inputs": len(verdicts), "doors": dict(doors), "outcomes": dict(counts), "images": images}
    write_json(options.json, result)
    if set(counts) - {"fine"} or images.get("uncaught"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
