"""The shipped cluster files: valid for Ray, closed to the outside, and what a user can rely on is in every one."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
import ray
import yaml
from moto import mock_aws

from raydelta.compute import remote
from raydelta.search_space import load_space
from raydelta.storage.files import is_remote

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "cluster.yaml", ROOT / "clusters" / "gcp.yaml", ROOT / "clusters" / "on-premise.yaml"]
RAYJOB = ROOT / "clusters" / "rayjob.yaml"

# The operator's API, version 1.5.1, as far as the file uses it; a field that is not here is a typo or needs a look.
JOB_FIELDS = {"entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "submissionMode", "rayClusterSpec"}
CLUSTER_FIELDS = {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"}
GROUP_FIELDS = {"serviceType", "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
POD_FIELDS = {"automountServiceAccountToken", "containers", "volumes"}
CONTAINER_FIELDS = {"name", "image", "env", "resources", "volumeMounts"}


def test_every_file_is_known_here() -> None:
    assert sorted((ROOT / "clusters").iterdir()) == sorted([*FILES[1:], RAYJOB, ROOT / "clusters" / "grafana.json"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_cluster_file_is_valid_and_closed(file: Path) -> None:
    """Ray's schema, prepare_config and validate_config; then what docs/security.md promises."""
    config = remote.read_cluster_file(file)
    runs = config["metadata"]["runs"]
    assert is_remote(runs) or Path(runs).is_absolute()
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    environment = next(line for line in config["setup_commands"] if line.endswith("> ~/ray-environment"))
    assert "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0" in environment
    assert "export RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:1" in environment
    # Without ray on the PATH of a login shell, ray down says nothing and stops nothing.
    assert any(line.endswith("echo '. ~/ray-environment' >> ~/.bashrc") for line in config["setup_commands"])
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        *_, stop, start = commands
        assert stop == ". ~/ray-environment; ray stop"
        assert start.startswith(". ~/ray-environment; ")
        assert "--disable-usage-stats" in start
        assert "--object-spilling-directory=" in start
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert {".git", "runs", ".venv"} <= set(config["rsync_exclude"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_commands_of_a_cluster_file_are_for_this_shell_and_this_ray(file: Path) -> None:
    config = remote.read_cluster_file(file)
    names = [name for name in config if name.endswith("_commands")]
    for command in [command for name in names for command in config[name]]:
        subprocess.run(["bash", "-n", "-c", command], check=True)
    known = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for start in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        for option in re.findall(r"--[a-z-]+", start):
            assert re.search(rf"{option}\b", known), option


def test_on_aws_nothing_but_ssh_is_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's own bootstrap, as ray up calls it, against a simulated AWS."""
    from ray.autoscaler._private.aws import config as aws

    monkeypatch.setattr(aws.time, "sleep", lambda seconds: None)  # for what the real one needs
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # it makes a key for ssh
    (tmp_path / ".ssh").mkdir()
    tree = remote.read_cluster_file(FILES[0])
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        config = aws.bootstrap_aws(tree)
        ec2 = boto3.client("ec2", tree["provider"]["region"])
        groups = {group["GroupId"]: group for group in ec2.describe_security_groups()["SecurityGroups"]}
    for node in config["available_node_types"].values():
        (name,) = node["node_config"]["SecurityGroupIds"]
        rules = groups[name]["IpPermissions"]
        from_outside = [rule for rule in rules if rule.get("IpRanges") or rule.get("Ipv6Ranges")]
        assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]
        assert {pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]} == {name}
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
    gpu, head = config["available_node_types"]["gpu"], config["available_node_types"]["head"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["ImageId"] == head["node_config"]["ImageId"]


def test_the_rayjob_is_what_the_operator_and_we_understand() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    job = yaml.safe_load(RAYJOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) == JOB_FIELDS
    cluster = spec["rayClusterSpec"]
    assert set(cluster) == CLUSTER_FIELDS
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["rayVersion"] == ray.__version__
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        assert set(group) <= GROUP_FIELDS
        assert group["rayStartParams"]["disable-usage-stats"] == "true"
        assert set(group["template"]["spec"]) == POD_FIELDS
        (container,) = group["template"]["spec"]["containers"]
        assert set(container) == CONTAINER_FIELDS
        sent = {variable["name"]: variable["value"] for variable in container["env"]}
        assert sent["RAY_USAGE_STATS_REPORT_URL"] == "http://127.0.0.1:1"
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"runs": "/runs"}
        assert {volume["name"] for volume in group["template"]["spec"]["volumes"]} == set(mounts)
    # What Ray reads out of the same file in its pods; validated by Ray's schema on the way.
    described = {"metadata": {"name": "raydelta", "namespace": "default"}, "spec": cluster}
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(described)
    resources = {name: node["resources"] for name, node in config["available_node_types"].items()}
    assert resources["gpu"]["GPU"] == 1
    assert "GPU" not in resources["headgroup"]
    json.dumps(job)

    program, command, space, *options = shlex.split(spec["entrypoint"])
    assert (program, command) == ("raydelta", "tune")
    load_space(space)
    help_text = subprocess.run(
        [sys.executable, "-m", "raydelta.cli", "tune", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert all(option in help_text for option in options if option.startswith("--"))
