"""``raydelta doctor``: checks whether this machine can run raydelta, and says how to fix what is wrong.

A check is a function that returns a ``Check`` or several. Checks work even where torch or Ray cannot be imported: what
may crash or hang (torch, Ray, a GPU, a bucket) runs in a process of its own, and every check has a deadline. Nothing is
changed, except for a temporary folder that tests the storage.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from raydelta import version
from raydelta.cli.doctor.probes import Silent, ask
from raydelta.version import __version__

State = Literal["ok", "warn", "bad"]

DEADLINE = 20.0  # seconds for any check
ANSWER = 10.0  # seconds for a bucket or a cluster
CLOCKS = 5.0  # seconds by which the clocks of a cluster may differ
GIB = 2**30
MEMORY = 4 * GIB  # what the main job with its built-in data takes
DISK = 5 * GIB  # of which checkpoints of a sweep on real data are the most
OPEN_FILES = 8192  # Ray keeps several for each worker, object and connection; it raises the soft limit by itself
SHARED = 0.3  # share of the memory that Ray's object store takes, in /dev/shm
EXTRAS = {"export": "onnx", "hyperopt": "hyperopt", "mlflow": "mlflow", "video": "av", "wandb": "wandb"}
"""Optional extra → the module that it brings."""


@dataclass(frozen=True)
class Check:
    """The result of one check; ``remedy`` says what to do where it is not ok."""

    name: str
    state: State
    found: str
    remedy: str = ""


def diagnose(runs: str | Path = "runs", addresses: Sequence[str] = ()) -> list[Check]:
    """Run all checks in parallel; the results come in a fixed order.

    Args:
        runs: output directory, which need not exist yet, or a bucket.
        addresses: data sets or buckets to reach, local or remote (``s3://…``).
    """
    checks: list[tuple[str, Callable[[], Check | Iterable[Check]]]] = [
        ("Python", check_python),
        ("packages", check_packages),
        ("torch", check_torch),
        ("Ray", check_ray),
        ("CPUs", check_cpus),
        ("memory", check_memory),
        ("shared memory", check_shared_memory),
        ("open files", check_open_files),
        ("runs", lambda: check_storage(runs)),
        *((address, lambda address=address: check_address(address)) for address in addresses),
        ("remote tools", check_tools),
        ("extras", check_extras),
        ("privacy", check_privacy),
    ]
    answers: list[list[Check] | None] = [None] * len(checks)

    def run(index: int) -> None:
        name, check = checks[index]
        try:
            found = check()
            answers[index] = [found] if isinstance(found, Check) else list(found)
        except Exception as error:  # a check that cannot run is reported, and the others go on
            answers[index] = [Check(name, "bad", f"cannot be checked: {type(error).__name__}: {error}", REPORT)]

    # Daemons: a dead mount blocks a thread for ever, and must not block the command.
    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(checks))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + DEADLINE + 2
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    silent = f"no answer within {DEADLINE:g} s"
    return [
        check
        for (name, _), answer in zip(checks, list(answers), strict=True)
        for check in answer
        or [Check(name, "bad", silent, "it waits for something that hangs: a mount, a driver or a server")]
    ]


REPORT = "this is a fault of the check itself; please report it with this line"


def format_checks(checks: Sequence[Check]) -> str:
    """One line for each check, and the remedy below it where there is one."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<5} {check.name:<{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':<5} {'':<{width}}  → {check.remedy}")
    return "\n".join(lines)


def as_json(checks: Sequence[Check]) -> str:
    """The checks as a JSON list of objects with name, state, found and remedy."""
    return json.dumps([asdict(check) for check in checks], indent=1, ensure_ascii=False)


def check_python() -> Check:
    """The version against what the package asks for."""
    wanted = requirements().python
    found = f"{platform.python_version()}, {sys.executable}, raydelta {__version__}"
    if platform.python_version() not in SpecifierSet(wanted, prereleases=True):
        return Check("Python", "bad", found, f"raydelta needs Python {wanted}; make an environment with one of these")
    return Check("Python", "ok", found)


@dataclass(frozen=True)
class Requirements:
    """What the package asks for."""

    python: str
    packages: list[Requirement]


def requirements() -> Requirements:
    """Of the checkout that runs if it is one, else of the installed package."""
    file = Path(version.__file__).parents[1] / "pyproject.toml"
    if file.exists():
        project = tomllib.loads(file.read_text())["project"]
        return Requirements(project["requires-python"], [Requirement(line) for line in project["dependencies"]])
    package = importlib.metadata.metadata("raydelta")
    packages = [Requirement(line) for line in importlib.metadata.requires("raydelta") or []]
    return Requirements(package["Requires-Python"], [one for one in packages if "extra" not in str(one.marker)])


def check_packages() -> list[Check]:
    """Every dependency against its range, and torchvision against the torch that it was built for."""
    wrong = []
    wanted = requirements().packages
    for requirement in wanted:
        found = _version(requirement.name)
        if found is None:
            wrong.append((requirement.name, f"{requirement.name} is missing", str(requirement)))
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append((requirement.name, f"{requirement.name} {found}", str(requirement)))
    pinned, torch = _pin("torchvision", "torch"), _version("torch")
    if pinned is not None and torch is not None and not pinned.specifier.contains(torch, prereleases=True):
        found = f"torchvision {_version('torchvision')} was built for {pinned}, but torch is {torch}"
        wrong.append(("torchvision", found, "torch torchvision"))
    if not wrong:
        return [Check("packages", "ok", f"{len(wanted)} in their ranges")]
    return [Check(name, "bad", found, f"pip install --upgrade '{wish}'") for name, found, wish in wrong]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pin(package: str, on: str) -> Requirement | None:
    """What a package asks of another one."""
    try:
        lines = importlib.metadata.requires(package) or []
        return next((one for one in map(Requirement, lines) if one.name == on and one.marker is None), None)
    except (importlib.metadata.PackageNotFoundError, InvalidRequirement):
        return None


def check_torch() -> Iterable[Check]:
    """Whether torch and torchvision import, and what every device can do."""
    try:
        found = ask("torch", DEADLINE)
    except Silent as error:
        return [
            Check("torch", "bad", f"cannot be imported: {error}", "pip install --force-reinstall torch torchvision")
        ]
    built = f"built for CUDA {found['cuda']}" if found["cuda"] else "built for CPUs"
    checks = [Check("torch", "ok", f"{found['version']}, {built}, torchvision {found['torchvision']}")]
    bf16 = {True: "bf16 units", False: "no bf16 units: compute.precision=auto takes fp32"}
    driver = _driver()
    if not found["devices"]:
        cpu = f"no GPU; CPU with {bf16[found['bf16']]}"
        if driver and not found["cuda"]:
            remedy = "this torch is built for CPUs; install the one for your CUDA (pytorch.org has the command)"
            checks.append(Check("devices", "warn", f"NVIDIA driver {driver}, but torch sees no GPU", remedy))
        elif driver:
            remedy = (
                f"install a driver for CUDA {found['cuda']}, or a torch for an older CUDA; is CUDA_VISIBLE_DEVICES set?"
            )
            reason = f": {found['trouble']}" if found["trouble"] else ""
            checks.append(Check("devices", "bad", f"NVIDIA driver {driver}, but torch sees no GPU{reason}", remedy))
        else:
            checks.append(Check("devices", "ok", cpu))
    for number, device in enumerate(found["devices"]):
        text = f"{device['name']}, {device['free'] / GIB:.0f} of {device['total'] / GIB:.0f} GiB free, driver {driver}"
        if device["trouble"]:
            remedy = "this torch does not support this GPU or driver; install one that does"
            checks.append(Check(f"GPU {number}", "bad", f"{text}: {device['trouble']}", remedy))
        elif device["free"] < device["total"] / 2:
            remedy = "another process uses it (nvidia-smi lists them)"
            checks.append(Check(f"GPU {number}", "warn", text, remedy))
        else:
            checks.append(Check(f"GPU {number}", "ok", f"{text}, {bf16[device['bf16']]}"))
    return checks


def _driver() -> str | None:
    """The version of NVIDIA's kernel driver, where there is one."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def check_ray() -> Iterable[Check]:
    """Whether Ray imports, and the cluster that commands would use: nodes, dashboard, token."""
    try:
        found = ask("ray", DEADLINE - 2)
    except Silent as error:
        remedy = "pip install --force-reinstall 'ray[data,default,train,tune]'; does `ray status` answer?"
        return [Check("Ray", "bad", f"cannot be asked: {error}", remedy)]
    checks = [Check("Ray", "ok", found["version"])]
    token = Path("~/.ray/auth_token").expanduser()
    if token.exists() and token.stat().st_mode & 0o077:
        remedy = f"chmod 600 {token}: whoever can read it can run code on your cluster"
        checks.append(Check("token", "warn", f"{token} is readable for others", remedy))
    if found["trouble"]:
        remedy = "unset RAY_ADDRESS, or start the cluster; ~/.ray/auth_token and RAY_AUTH_MODE have to be its own"
        checks.append(Check("cluster", "bad", found["trouble"], remedy))
    elif found["address"] is None:
        checks.append(Check("cluster", "ok", "none runs here; commands start a private one, with a token"))
    else:
        text = (
            f"{found['address']}: {found['nodes']} node{'s' * (found['nodes'] != 1)}, {found['cpus']:g} CPUs, "
            f"{found['gpus']:g} GPUs, dashboard {found['dashboard'] or 'off'}, authentication {found['mode']}"
        )
        if found["mode"] != "token":
            remedy = "whoever reaches it can run code on it: export RAY_AUTH_MODE=token before ray start (security.md)"
            checks.append(Check("cluster", "warn", text, remedy))
        elif not found["dashboard"]:
            remedy = "start it with the dashboard (pip install 'ray[default]'): without it, stopped trials block others"
            checks.append(Check("cluster", "bad", text, remedy))
        else:
            checks.append(Check("cluster", "ok", text))
        differ = {node: seconds for node, seconds in found["clocks"].items() if abs(seconds) > CLOCKS}
        if differ:
            listed = ", ".join(f"{node} {abs(s):.0f} s {'ahead' if s > 0 else 'behind'}" for node, s in differ.items())
            remedy = (
                "set them by chrony or systemd-timesyncd: buckets refuse requests that are minutes off, locks expire"
            )
            checks.append(Check("clocks", "warn", f"differ from this machine's: {listed}", remedy))
    return checks


def check_cpus() -> Check:
    """What the machine has, against what this process may use."""
    has, may = os.cpu_count() or 1, float(len(os.sched_getaffinity(0)))
    quota = cpu_quota()
    if quota is not None:
        may = min(may, quota)
    if may < has:
        remedy = f"Ray may count all {has}: start it with `ray start --head --num-cpus={max(1, int(may))}`"
        return Check("CPUs", "warn", f"{may:g} of {has} may be used (cgroup or affinity)", remedy)
    return Check("CPUs", "ok", f"{has}")


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the control group may use, version 2 or 1; None without a limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def check_memory() -> Check:
    """What is free, the control group's limit included."""
    total, free = memory()
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < MEMORY / 4:
        return Check("memory", "bad", text, "too little to train anything; end other programs or raise the limit")
    if free < MEMORY:
        remedy = "the built-in example takes about 4 GiB; fewer trials at once (`concurrent` in the space) take less"
        return Check("memory", "warn", text, remedy)
    return Check("memory", "ok", text)


def memory(info: Path = Path("/proc/meminfo"), root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Bytes in all and available, of the machine or of the control group where that is less."""
    lines = dict(line.split(":") for line in info.read_text().splitlines())
    total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (root / limit).read_text().strip(), int((root / used).read_text())
        except OSError:
            continue
        if most != "max" and int(most) < total:
            total, free = int(most), min(free, max(0, int(most) - now))
    return total, free


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Where Ray keeps what its processes share."""
    wanted = SHARED * memory()[0]
    if not folder.is_dir():
        return Check("shared memory", "warn", f"no {folder}", "Ray uses the disk instead, which is slow")
    usage = shutil.disk_usage(folder)
    text = f"{folder} {usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if usage.free < wanted:
        remedy = (
            f"Ray wants {wanted / GIB:.1f} GiB, and uses the slow disk otherwise; in a container: "
            f"docker run --shm-size={wanted / GIB:.0f}g"
        )
        return Check("shared memory", "warn", text, remedy)
    return Check("shared memory", "ok", text)


def check_open_files() -> Check:
    """How many a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    text = f"{'unlimited' if soft == unlimited else soft}, can be raised to {'any' if hard == unlimited else hard}"
    if hard != unlimited and hard < OPEN_FILES:
        remedy = f"Ray may run out of them: allow {OPEN_FILES} or more (`nofile` in /etc/security/limits.conf)"
        return Check("open files", "warn", text, remedy)
    return Check("open files", "ok", text)


def check_storage(runs: str | Path) -> Check:
    """Whether the output directory works: writable, renames are atomic, enough space; or the bucket answers."""
    if "://" in str(runs):
        return check_address(str(runs))
    folder = Path(runs).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".raydelta-doctor-", dir=folder) as name:
            made = Path(name) / "beside"
            made.mkdir()
            (made / "file").write_text("whole")
            made.rename(made.with_name("published"))
            beside = Path(name) / "beside.txt"
            beside.write_text("new")
            target = Path(name) / "published" / "file"
            beside.replace(target)
            whole = target.read_text() == "new"
        usage = shutil.disk_usage(folder)
    except OSError as error:
        remedy = (
            "give --runs a folder that you may write to, on a disk of this machine or a mount that supports renaming"
        )
        return Check("runs", "bad", f"{folder}: {error.strerror or error}", remedy)
    text = f"{folder} {usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free"
    if not whole:
        remedy = "checkpoints need renaming; runs can also go into a bucket: --runs s3://bucket/runs"
        return Check("runs", "bad", f"{text}; a rename did not replace a file", remedy)
    if usage.free < DISK:
        state: State = "bad" if usage.free < DISK / 10 else "warn"
        return Check("runs", state, text, "free some, or give --runs a larger disk: every checkpoint is written twice")
    return Check("runs", "ok", f"{text}, writable, renames are atomic")


def check_address(address: str) -> Check:
    """Whether a data set, folder or bucket answers."""
    try:
        found = ask("address", ANSWER, address)
    except Silent as error:
        found = {"name": "address", "trouble": str(error)}  # the address itself may hold a password
    if found["trouble"]:
        remedy = "is the name right?"
        if "://" in address:
            remedy += " Credentials (AWS_ACCESS_KEY_ID, … or a role) and AWS_ENDPOINT_URL: every node needs them"
        return Check(found["name"], "bad", found["trouble"], remedy)
    return Check(found["name"], "ok", found["text"])


def check_tools() -> Check:
    """What ``ray up`` and ``--cluster`` call."""
    missing = [tool for tool in ("ssh", "rsync") if shutil.which(tool) is None]
    if missing:
        remedy = "only ray up and --cluster need them: apt-get install openssh-client rsync"
        return Check("remote tools", "warn", f"no {' and no '.join(missing)}", remedy)
    return Check("remote tools", "ok", "ssh, rsync")


def check_extras() -> Check:
    """Optional extras; none is needed."""
    there = [name for name, module in EXTRAS.items() if importlib.util.find_spec(module) is not None]
    missing = [name for name in EXTRAS if name not in there]
    text = f"{', '.join(there) or 'none'} installed"
    return Check("extras", "ok", text + (f"; pip install 'raydelta[{','.join(missing)}]' for more" if missing else ""))


def check_privacy() -> Check:
    """Whether anything would be sent anywhere."""
    from raydelta.compute.cluster import SETTINGS

    name = "RAY_USAGE_STATS_ENABLED"
    if os.environ.get(name, SETTINGS[name]) != "0":
        return Check("privacy", "warn", f"{name} = {os.environ[name]}: Ray reports its use", f"unset {name}")
    return Check("privacy", "ok", "Ray's usage statistics off; nothing is sent anywhere unless tracking.* names where")
