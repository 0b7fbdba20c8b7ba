"""A cluster that stands at zero: jobs ask Ray's autoscaler for nodes, and it takes them back.

The autoscaler is Ray's own with its fake provider, whose nodes are raylets on the same machine.
`ray.cluster_utils.AutoscalingCluster` would do, if it did not begin by stopping every Ray of the user.
"""

import json
import sys
import time
from collections.abc import Iterator

import pytest
import yaml
from cluster_kit import ROWS, write_shards
from machines_kit import Machine, machines, require_namespaces

require_namespaces()
pytestmark = pytest.mark.nightly

IDLE_MIN = 0.1
TRAIN = {
    "kind": "train",
    "name": "grown",
    "data": {"features": {"vector": "x"}},
    "model": {"network": {"kind": "dense", "widths": [4]}, "loss": {"kind": "mse"}},
    "train": {"epochs": 2, "batch_size": 32},
    "scale": {"workers": 2, "cpus_per_worker": 1},
}


@pytest.fixture(scope="module")
def head() -> Iterator[Machine]:
    """A head without CPUs, and an autoscaler that may start two nodes of two CPUs."""
    with machines(1) as (machine,):
        config = {
            "cluster_name": "fake",
            "max_workers": 2,
            "upscaling_speed": 100.0,
            "idle_timeout_minutes": IDLE_MIN,
            "provider": {
                "type": "fake_multinode",
                "head_node_id": "fffffffffffffffffffffffffffffffffffffffffffffffffff00000",
                "gcs_address": f"{machine.ip}:6379",
                "use_node_id_as_ip": True,  # the nodes share an address
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "available_node_types": {
                "ray.head.default": {
                    "resources": {"CPU": 0},
                    "node_config": {},
                    "max_workers": 0,
                },
                "worker": {
                    "resources": {"CPU": 2},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": 2,
                },
            },
            "head_node_type": "ray.head.default",
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
        }
        file = machine.folder / "autoscaler.yaml"
        file.write_text(json.dumps(config))
        machine.home.mkdir(0o700)
        token = machine.home / "ray_token"
        token.touch(0o600)
        token.write_text("7" * 64)
        own = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
        own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        done = machine.execute(
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=0"),
            *(f"--node-ip-address={machine.ip}", "--port=6379", "--include-dashboard=false"),
            *(f"--temp-dir={machine.folder}/t", f"--autoscaling-config={file}"),
            "--disable-usage-stats",
            **own,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (machine.folder / "rows").mkdir()
        write_shards(machine.folder / "rows")
        yield machine


def cpus(machine: Machine) -> float:
    """The CPUs that the cluster has now."""
    script = (
        "from hourglass.cluster.connect import ray_environment, refresh_ray; "
        "from hourglass.settings import Settings; import os, sys; "
        "os.environ.update(ray_environment(Settings(), sys.argv[1])); refresh_ray(); "
        "from hourglass import ray_internals; "
        "print(sum(n.resources.get('CPU', 0) for n in ray_internals.nodes(sys.argv[1]) if n.alive))"
    )
    done = machine.execute(sys.executable, "-c", script, f"{machine.ip}:6379")
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def at_zero(machine: Machine, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if cpus(machine) == 0:
            return True
        time.sleep(1)
    return False


def test_from_zero_to_a_run_and_back_to_zero(head: Machine) -> None:
    assert cpus(head) == 0
    file = head.folder / "train.yaml"
    file.write_text(
        yaml.safe_dump({**TRAIN, "data": {**TRAIN["data"], "uri": str(head.folder / "rows")}})
    )
    address = {"HOURGLASS_ADDRESS": f"{head.ip}:6379"}
    done = head.run("train", str(file), timeout_s=300, **address)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "waiting for 3 x {CPU: 1}; the cluster has 0 nodes, 0 of 0 CPUs free" in said
    assert cpus(head) > 0
    score = {
        "kind": "score",
        "model": str(head.home / "runs" / "grown" / "artifact"),
        "uri": str(head.folder / "rows"),
        "output": str(head.folder / "scores"),
    }
    file.write_text(yaml.safe_dump(score))
    assert at_zero(head, 120)
    done = head.run("score", str(file), timeout_s=300, **address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ROWS)} rows" in done.stdout + done.stderr
    assert at_zero(head, 120)


def test_what_never_comes_is_given_up(head: Machine) -> None:
    file = head.folder / "large.yaml"
    scale = {"workers": 2, "cpus_per_worker": 8, "wait_s": 5}
    job = {**TRAIN, "name": "large", "scale": scale}
    file.write_text(
        yaml.safe_dump({**job, "data": {**TRAIN["data"], "uri": str(head.folder / "rows")}})
    )
    done = head.run("train", str(file), HOURGLASS_ADDRESS=f"{head.ip}:6379")
    assert done.returncode == 2
    assert "waited 5 s for 2 x {CPU: 8} and 1 x {CPU: 1}; the cluster has" in done.stderr
    assert "or raise scale.wait_s" in done.stderr
