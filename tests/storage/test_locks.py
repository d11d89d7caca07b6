import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest

from raydelta.errors import UserError
from raydelta.storage import files as storage
from raydelta.storage import locks
from raydelta.storage.bucket import open_copy
from raydelta.storage.locks import exclusive, is_locked, open_lock
from tests.storage.test_files import listing

RACE = """
import sys, time
from pathlib import Path
from raydelta.storage.locks import exclusive
folder = Path(sys.argv[1])
with exclusive(folder / "stage"):
    if not (folder / "stage").exists():
        with (folder / "trained").open("a") as log:
            log.write("once\\n")
        time.sleep(0.5)
        (folder / "stage").mkdir()
"""


def test_processes_that_race_make_it_once(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [racer.communicate(timeout=60)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, said
    assert (tmp_path / "trained").read_text() == "once\n"
    assert listing(tmp_path) == ["stage", "trained"], "no lock is left"


def test_the_lock_of_a_killed_owner_is_free(tmp_path: Path) -> None:
    code = "import sys, time; from raydelta.storage import locks\n"
    code += "with locks.exclusive(sys.argv[1]): print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "stage")]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout and owner.stdout.readline() == "1\n"
    threading.Timer(1, lambda: owner.send_signal(signal.SIGKILL)).start()
    waiting = pytest.warns(UserWarning, match="stage: another command is making it; waiting for its result")
    with waiting, exclusive(tmp_path / "stage"):
        assert owner.wait() == -signal.SIGKILL


def test_a_colleague_waits_too() -> None:
    """The lock file of another user cannot be written, in a folder that both can write to."""
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    code = "import os, sys; from raydelta.storage import locks\nos.setuid(65534)\n"
    code += "with locks.exclusive(sys.argv[1]): print(2)"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        with locks.exclusive(f"{folder}/stage"):
            command = [sys.executable, "-c", code, f"{folder}/stage"]
            colleague = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert colleague.stdout and colleague.stderr
            said = next((line for line in colleague.stderr if "stage: another command is making it" in line), None)
        assert said and colleague.stdout.read() == "2\n"
        assert colleague.wait() == 0


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / ".stage.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"stage\.lock"), exclusive(tmp_path / "stage"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, flags: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="knows no locks"), exclusive(tmp_path / "stage"):
        pass


def test_a_lock_in_an_object_store_has_one_owner_at_a_time(s3: str) -> None:
    inside, most = [], []

    def work() -> None:
        with warnings.catch_warnings(), exclusive(f"{s3}/sets/street"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.2)
            inside.pop()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
    assert most == [1] * 4


def test_a_lock_in_an_object_store_is_kept_while_its_owner_lives_and_taken_when_not(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE", 4.0)
    files, path = storage.open_address(f"{s3}/sets")
    for dead in ("choosing-0123", "000000000001-4567"):
        with files.open_output_stream(f"{path}/.real.lock/{dead}") as stream:
            stream.write(b"dead")
    start = time.monotonic()
    with pytest.warns(UserWarning, match="real: another command"), exclusive(f"{s3}/sets/real"):
        assert 3.5 < time.monotonic() - start < 15
        taken = threading.Event()

        def wait() -> None:
            with exclusive(f"{s3}/sets/real"):
                taken.set()

        other = threading.Thread(target=wait)
        other.start()
        assert not taken.wait(7), "its owner gives signs of life"
    assert taken.wait(5)
    other.join()


def put_ticket(folder: str, name: str) -> None:
    files, path = storage.open_address(folder)
    with files.open_output_stream(f"{path}/{name}") as stream:
        stream.write(b"ticket")


def test_who_is_not_to_wait_for_a_lock_in_an_object_store_leaves_no_ticket(s3: str) -> None:
    first, second = open_lock(f"{s3}/sets/nowait"), open_lock(f"{s3}/sets/nowait")
    first.acquire()
    with pytest.raises(BlockingIOError):
        second.acquire(wait=False)
    assert (first.held, second.held) == (True, False)
    first.release()
    second.acquire(wait=False)
    assert second.held
    second.release()


def test_a_lock_in_the_copy_of_a_bucket_is_the_buckets(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "LEASE", 4.0)
    copies = []
    for machine in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        copies.append(open_copy(f"{s3}/locked"))
    one, two = (copy / "expert-1" for copy in copies)
    assert not is_locked(two)
    with exclusive(one):
        assert is_locked(two)
        with pytest.raises(BlockingIOError), exclusive(two, wait=False):
            pass
    assert not is_locked(two)
    put_ticket(f"{s3}/locked/.expert-1.lock", "000000000001-dead")
    assert is_locked(two), "it may live"
    time.sleep(5)
    assert not is_locked(two), "it gives no sign of life"
    assert listing(tmp_path / "one") == listing(tmp_path / "two"), "no lock is on this machine"
