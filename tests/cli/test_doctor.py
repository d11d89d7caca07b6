import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import raydelta
from raydelta.cli.doctor import checks, probes


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raydelta.cli", "doctor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment)


def test_it_holds_where_everything_is_broken_and_says_what_to_do(tmp_path: Path) -> None:
    for package, code in (
        ("torch", "raise ImportError('libcudart.so.99: cannot open shared object file')"),
        ("ray", "import os; os.kill(os.getpid(), 11)"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(code)
    file = tmp_path / "file"
    file.write_text("no folder")
    package = str(Path(raydelta.__file__).parents[1])
    result = run(
        *("--json", "--runs", file / "runs", tmp_path, "nowhere"),
        PYTHONPATH=f"{tmp_path}:{package}",
        RAY_USAGE_STATS_ENABLED="1",
    )
    assert result.returncode == 1, result.stderr
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert checks["torch"]["found"].endswith("libcudart.so.99: cannot open shared object file")
    assert checks["Ray"]["found"] == "cannot be asked: killed by signal 11"
    assert checks["runs"]["state"] == "bad"
    assert checks["nowhere"]["found"] == "nothing there"
    assert checks[str(tmp_path)]["state"] == "ok"
    assert checks["privacy"]["state"] == "warn"
    assert {"Python", "packages", "CPUs", "memory", "shared memory", "open files", "extras"} <= checks.keys()
    for check in checks.values():
        assert check["found"]
        assert (check["state"] == "ok") == (not check["remedy"]), check


def test_a_machine_that_is_fit(tmp_path: Path) -> None:
    result = run("--runs", tmp_path / "not" / "there" / "yet", RAY_ADDRESS="")
    names = [line.split()[1] for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert names[:3] == ["Python", "packages", "torch"]
    assert "none runs here" in result.stdout
    assert f"{tmp_path} " in result.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is left behind, and nothing made"


def test_a_package_out_of_its_range_and_a_torchvision_for_another_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version, more in (
        ("kornia", "0.1", ""),
        ("torchvision", "0.99", "Requires-Dist: torch==9.9\n"),
    ):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{more}")
    monkeypatch.syspath_prepend(tmp_path)
    found = {check.name: check for check in checks.check_packages()}
    assert found.keys() == {"kornia", "torchvision"}
    assert found["kornia"].found == "kornia 0.1"
    assert found["kornia"].remedy.startswith("pip install --upgrade 'kornia>=")
    assert "torchvision 0.99 was built for torch==9.9" in found["torchvision"].found


def test_limits_of_a_container_count(tmp_path: Path) -> None:
    assert checks.cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert checks.cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert checks.cpu_quota(tmp_path) is None
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\n")
    assert checks.memory(info, tmp_path) == (16 * 2**30, 8 * 2**30)
    (tmp_path / "memory.max").write_text(f"{2 * 2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**30}\n")
    assert checks.memory(info, tmp_path) == (2 * 2**30, 2**30)


def test_the_cluster_that_would_be_used(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    _, *rest = checks.check_ray()
    cluster = rest[-1]
    assert cluster.name == "cluster"
    assert ": 1 node, 2 CPUs, 0 GPUs, dashboard http://127.0.0.1:" in cluster.found
    assert cluster.found.endswith("authentication token")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    gone = list(checks.check_ray())[-1]
    assert gone.state == "bad"
    assert "127.0.0.1:1: nothing answers there" in gone.found


def test_clocks_that_differ_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probes.difference(10, 11, 12) == 0, "it may have been read at any time between"
    assert probes.difference(10, 52, 12) == 40
    assert probes.difference(10, 4, 12) == -6
    found = {"version": "2.60", "trouble": "", "address": "10.0.0.1:6379", "nodes": 3, "cpus": 4, "gpus": 0}
    found |= {"dashboard": "http://127.0.0.1:8265", "mode": "token"}
    clocks = {"10.0.0.2": 40.0, "10.0.0.3": -4.0, "10.0.0.4": -3600.0}
    monkeypatch.setattr(checks, "ask", lambda what, seconds: found | {"clocks": clocks})
    last = list(checks.check_ray())[-1]
    assert (last.name, last.state) == ("clocks", "warn")
    assert last.found == "differ from this machine's: 10.0.0.2 40 s ahead, 10.0.0.4 3600 s behind"


def test_a_bucket_that_never_answers_does_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(checks, "ANSWER", 4.0)
        check = checks.check_address("s3://KEY:hidden@bucket/set")
    assert check.state == "bad"
    assert check.found == "no answer within 4 s"
    assert "hidden" not in repr(check)


def test_a_probe_that_ends_without_an_answer_is_a_message() -> None:
    with pytest.raises(probes.Silent, match="KeyError: 'no such probe'"):
        probes.ask("no such probe", 60)
