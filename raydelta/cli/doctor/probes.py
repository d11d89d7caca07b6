"""What ``raydelta doctor`` asks in a process of its own, because it may crash or hang: torch, Ray, an address.

``python -m raydelta.cli.doctor.probes torch`` prints its answer as the last line, in JSON.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

CLOCKS = 8.0  # seconds that other nodes have to say what time it is


class Silent(Exception):  # noqa: N818 - as it says
    """A probe gave no answer; the message says why."""


def ask(what: str, seconds: float, value: str = "") -> dict[str, Any]:
    """Ask something of ``PROBES`` in a process of its own.

    Args:
        value: passed on stdin, because every user of a machine can read command lines.

    Raises:
        Silent: it crashed, or gave no answer in time.
    """
    command = [sys.executable, "-m", "raydelta.cli.doctor.probes", what]
    try:
        done = subprocess.run(command, input=value, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Silent(f"no answer within {seconds:g} s") from None
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1].strip() if said else f"ended with {done.returncode}"
        raise Silent(reason if done.returncode >= 0 else f"killed by signal {-done.returncode}") from None


def probe_torch(_: str) -> dict[str, Any]:
    import torch
    import torchvision

    from raydelta.compute.device import has_bf16_units

    devices, trouble = [], ""
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        free, total, failure, bf16 = 0, 0, "", False
        try:
            free, total = torch.cuda.mem_get_info(device)
            ones = torch.ones(64, 64, device=device)
            assert float((ones @ ones).sum()) == 64**3
            bf16 = has_bf16_units(device)
        except Exception as error:  # whatever the driver says
            failure = str(error).strip().splitlines()[0]
        name = torch.cuda.get_device_name(device)
        devices.append({"name": name, "free": free, "total": total, "bf16": bf16, "trouble": failure})
    if not devices and torch.version.cuda:
        try:
            torch.cuda.init()
        except Exception as error:
            trouble = str(error).strip().splitlines()[0]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "torchvision": torchvision.__version__,
        "bf16": has_bf16_units(torch.device("cpu")),
        "devices": devices,
        "trouble": trouble,
    }


def probe_ray(_: str) -> dict[str, Any]:
    from raydelta.compute.cluster import ensure_ray, running_address, set_defaults

    set_defaults()
    import ray

    mode = os.environ.get("RAY_AUTH_MODE", "off")
    found: dict[str, Any] = {"version": ray.__version__, "address": running_address(), "trouble": "", "mode": mode}
    if found["address"] is not None:
        try:
            cluster = ensure_ray()
            resources = ray.cluster_resources()
            found |= {"nodes": cluster.nodes, "dashboard": cluster.dashboard}
            found |= {"cpus": resources.get("CPU", 0), "gpus": resources.get("GPU", 0), "clocks": _read_clocks()}
        except ValueError as error:
            found["trouble"] = str(error)
    return found


def _read_clocks() -> dict[str, float]:
    """Address of every other node → seconds that its clock is ahead of this machine's, at least; negative: behind."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, before, tasks = ray.get_runtime_context().get_node_id(), time.time(), {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeID"] != here:
            only = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0)(_read_clock).options(scheduling_strategy=only).remote()
            tasks[task] = node["NodeManagerAddress"]
    answered, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=CLOCKS) if tasks else ([], [])
    return {tasks[task]: difference(before, ray.get(task), time.time()) for task in answered}


def _read_clock() -> float:
    return time.time()


def difference(before: float, there: float, after: float) -> float:
    """Seconds by which a clock that was read between two looks at ours is ahead of it, at least; negative: behind."""
    return there - after if there > after else min(0.0, there - before)


def probe_address(address: str) -> dict[str, Any]:
    from raydelta.data.shards import MANIFEST, read_manifest
    from raydelta.errors import UserError
    from raydelta.storage.files import is_remote, join, open_address, open_file_address, without_secrets

    name, trouble, text = without_secrets(address), "", ""
    try:
        files, path = open_address(address)
        manifest, manifest_path = open_file_address(join(address, MANIFEST))
        if manifest.get_file_info(manifest_path).is_file:
            splits = read_manifest(address).splits
            text = "data set, " + ", ".join(f"{split} {part.rows}" for split, part in splits.items()) + " images"
        else:
            info = files.get_file_info(path)
            there = info.type.name != "NotFound"
            text, trouble = ("answers, no data set", "") if there else ("", "nothing there")
    except (OSError, UserError) as error:
        trouble = " ".join(str(error).split())[:300].removeprefix(f"{name}: ")
    if is_remote(address) and address != name:
        trouble = trouble.replace(address, name)
    return {"name": name, "trouble": trouble, "text": text}


PROBES: dict[str, Callable[[str], dict[str, Any]]] = {
    "torch": probe_torch,
    "ray": probe_ray,
    "address": probe_address,
}


if __name__ == "__main__":
    answer = json.dumps(PROBES[sys.argv[1]](sys.stdin.read()))
    print(f"\n{answer}", flush=True)
    os._exit(0)  # whatever a library still wants to do at its end may hang
