import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydelta import doctor
from raydelta.doctor import (
    Check,
    check_address,
    check_packages,
    check_storage,
    cpu_quota,
    diagnose,
    format_checks,
    memory,
)


def test_this_machine_can_run_the_tests_and_is_told_so(tmp_path: Path) -> None:
    start = time.monotonic()
    checks = {check.name: check for check in diagnose(tmp_path / "runs")}
    assert time.monotonic() - start < doctor.DEADLINE + 5
    for name in ("Python", "packages", "torch", "Ray", "CPUs", "memory", "runs", "privacy"):
        assert name in checks
    assert checks["Python"].state == checks["packages"].state == checks["runs"].state == "ok"
    assert sys.executable in checks["Python"].found
    assert not (tmp_path / "runs").exists(), "it leaves nothing"
    assert all(check.remedy for check in checks.values() if check.state == "bad")


@pytest.mark.parametrize("module", ["torch", "ray"])
def test_a_package_that_cannot_be_imported_is_a_finding(module: str, tmp_path: Path) -> None:
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text("raise ImportError('libcudart.so.99: cannot open')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "raydelta.cli", "doctor", "--json", "--runs", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert result.returncode == 1, result.stdout + result.stderr
    (found,) = (check for check in json.loads(result.stdout) if check["name"].lower() == module)
    assert found["state"] == "bad"
    assert "libcudart.so.99" in found["found"]
    assert found["remedy"].startswith("pip install --force-reinstall")


def test_a_dependency_out_of_its_range_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: "0.1" if package == "kornia" else found(package))
    (check,) = check_packages()
    assert (check.name, check.state, check.found) == ("kornia", "bad", "kornia 0.1")
    assert check.remedy.startswith("pip install --upgrade 'kornia>=")


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert check_storage(tmp_path / "file" / "runs").state == "bad"
    monkeypatch.setattr(doctor, "DISK", 2**60)
    full = check_storage(tmp_path)
    assert full.state == "bad"
    assert full.remedy.startswith("free some")


def test_an_address_is_reached_or_named(s3: str, tmp_path: Path) -> None:
    assert check_address(s3).state == "ok"
    assert check_address(str(tmp_path)).state == "ok"
    missing = check_address(f"{s3}-nowhere/set")
    assert missing.state == "bad"
    assert "AWS_ACCESS_KEY_ID" in missing.remedy
    assert check_address(str(tmp_path / "nowhere")).state == "bad"


def test_limits_of_a_control_group_count(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert cpu_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(tmp_path) is None
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 800 kB\n")
    assert memory(tmp_path / "meminfo", tmp_path) == (1_024_000, 819_200)
    (tmp_path / "memory.max").write_text("512000")
    (tmp_path / "memory.current").write_text("500000")
    assert memory(tmp_path / "meminfo", tmp_path) == (512_000, 12_000)


def test_a_check_that_trips_is_a_finding_and_not_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def trip() -> Check:
        raise RuntimeError("no /proc here")

    monkeypatch.setattr(doctor, "check_memory", trip)
    checks = {check.name: check for check in diagnose(tmp_path)}
    assert checks["memory"].state == "bad"
    assert "RuntimeError: no /proc here" in checks["memory"].found
    assert checks["Python"].state == "ok"


def test_the_remedy_stands_below_what_is_wrong() -> None:
    text = format_checks([Check("torch", "ok", "2.15"), Check("memory", "bad", "0.5 GiB free", "end other programs")])
    assert [line.split() for line in text.splitlines()] == [
        ["ok", "torch", "2.15"],
        ["bad", "memory", "0.5", "GiB", "free"],
        ["→", "end", "other", "programs"],
    ]
