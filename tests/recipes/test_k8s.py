"""Every manifest shipped or rendered is valid and keeps the rules, and the rules catch mistakes."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from hourglass.cluster import connect, pods, render, workload
from hourglass.cluster.pods import PodOptions
from hourglass.cluster.workload import Sizes
from hourglass.config import files, serve
from hourglass.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))
import k8s_rules
from k8s_mistakes import MISTAKES, find
from k8s_objects import Object, quantity, secrets_named, walk

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "k8s-schemas"
BUILDS = ["base", "overlays/local", "overlays/production"]
COMPONENTS = sorted(path.name for path in (ROOT / "k8s" / "components").iterdir())


def _kubectl() -> tuple[int, int]:
    """Version of the kubectl on this machine; (0, 0) without one."""
    if shutil.which("kubectl") is None:
        return (0, 0)
    asked = ["kubectl", "version", "--client", "--output=json"]
    printed = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    version = yaml.safe_load(printed)["clientVersion"]
    return int(version["major"]), int(re.sub(r"\D.*", "", version["minor"]))


pytestmark = pytest.mark.skipif(
    _kubectl() < (1, 21), reason="building the manifests needs kubectl 1.21 or later (`patches`)"
)


@cache
def _built(folder: str) -> list[Object]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@cache
def _built_with(components: tuple[str, ...]) -> list[Object]:
    with tempfile.TemporaryDirectory() as folder:
        k8s = os.path.relpath(ROOT / "k8s", os.path.realpath(folder))
        tree = {
            "resources": [f"{k8s}/base"],
            "components": [f"{k8s}/components/{name}" for name in components],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(tree))
        return _built(folder)


def build_with(*components: str) -> list[Object]:
    """The base with components, as an overlay would have them."""
    return copy.deepcopy(_built_with(components))


def build(folder: str) -> list[Object]:
    """A fresh copy of what kustomize makes of a folder."""
    return copy.deepcopy(_built(folder))


TRAIN = {
    "kind": "train",
    "name": "big.job",
    "data": {"uri": "s3://hourglass/data/mnist/train", "features": {"vector": "image"}},
    "model": {"network": {"kind": "dense", "widths": [100]}},
    "scale": {"workers": 3, "cpus_per_worker": 2},
}


def rendered(
    kind: str = "RayJob", *, pod: Object | None = None, sizes: Sizes | None = None, **run: Any
) -> list[Object]:
    """What `hourglass render` prints for a job, on a schedule or not, or for a serve file."""
    options = PodOptions("hourglass:0.1.0", **(pod or {}))
    if kind == "RayService":
        file = serve.load(ROOT / "serve" / "mnist.yaml")
        load = workload.of_endpoints(file, "mnist", sizes or Sizes(), options.volumes)
    else:
        load = workload.of_job(files.parse(TRAIN), sizes or Sizes(gpus=1), options.volumes)
    if kind == "RayCronJob":
        run["schedule"] = "0 2 * * *"
    objects = render.manifests(load, options, render.RunOptions(namespace="hourglass", **run))
    return list(yaml.safe_load_all(render.to_yaml(objects)))


@pytest.mark.parametrize("folder", BUILDS)
def test_what_is_shipped_is_valid_and_keeps_the_rules(folder: str) -> None:
    objects = build(folder)
    if not SCHEMAS.exists():
        warnings.warn(
            "no schemas beside the repository: custom kinds by our rules only", stacklevel=1
        )
    assert k8s_rules.schema_errors(objects, SCHEMAS) == []
    assert k8s_rules.broken(objects) == []


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_is_valid_and_keeps_the_rules(component: str) -> None:
    objects = build_with(component)
    assert objects != build("base")
    assert k8s_rules.schema_errors(objects, SCHEMAS) == []
    assert k8s_rules.broken(objects) == []


def test_a_role_replaces_the_keys_of_the_bucket() -> None:
    account = find(build_with("workload-identity"), "ServiceAccount")
    role = account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
    assert role == "arn:aws:iam::000000000000:role/hourglass"
    assert "annotations" not in find(build("base"), "ServiceAccount")["metadata"]


def test_the_dashboard_shows_training_and_endpoints_per_model() -> None:
    config = find(build_with("monitoring"), "ConfigMap", "dashboard")
    assert config["metadata"]["labels"] == {"grafana_dashboard": "1"}
    dashboard = json.loads(config["data"]["dashboard.json"])
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = {
        panel["title"]: " ".join(target["expr"] for target in panel["targets"]) for panel in panels
    }
    shown = {
        "Loss and held-out error": "ray_hourglass_train_loss",
        "Restarts of workers": "ray_hourglass_train_restarts",
        "Latency": "ray_hourglass_serve_latency_ms_bucket",
        "Errors per second": "ray_hourglass_serve_errors_total",
    }
    assert {title for title, metric in shown.items() if metric not in queries[title]} == set()
    per_model = [query for query in queries.values() if 'model=~"$model"' in query]
    assert len(per_model) == 6
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob", "RayService"])
def test_what_is_rendered_is_valid_and_keeps_the_rules_of_the_base_it_joins(kind: str) -> None:
    everything = {
        "node_selector": (("pool", "batch"),),
        "tolerations": ({"key": "spot", "operator": "Exists", "effect": "NoSchedule"},),
        "pull_secrets": ("registry",),
        "topology_key": "topology.kubernetes.io/zone",
    }
    run = {"gateway_class": "istio"} if kind == "RayService" else {"deadline_s": 60, "ttl_s": 0}
    if kind == "RayJob":
        run |= {"queue": "training", "priority_class": "urgent"}
    for objects in (rendered(kind), rendered(kind, pod=everything, **run)):
        assert find(objects, kind)
        assert k8s_rules.schema_errors(objects, SCHEMAS) == []
        assert k8s_rules.broken(build_with("kueue") + objects) == []


def test_render_and_base_ask_for_the_same_ray() -> None:
    assert find(build("base"), "RayCluster")["spec"]["rayVersion"] == pods.RAY_VERSION


def test_pods_get_the_ray_settings_of_a_cluster_on_one_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "as the operator sets it")
    wanted = connect.ray_environment(Settings(), "auto")
    assert wanted.items() <= find(build("base"), "ConfigMap")["data"].items()


def test_the_base_holds_all_kinds() -> None:
    kinds = {item["kind"] for item in build("base")}
    assert kinds >= {
        "RayCluster",
        "RayService",
        "Deployment",
        "StatefulSet",
        "Service",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "ConfigMap",
        "Namespace",
    }


@pytest.mark.parametrize("folder", BUILDS)
def test_nothing_is_suspended_that_an_apply_would_suspend_again(folder: str) -> None:
    assert [part for o in build(folder) for part in walk(o) if "suspend" in part] == []


def test_production_pins_every_image_by_digest_and_has_gpus() -> None:
    objects = build("overlays/production")
    images = {part["image"] for o in objects for part in walk(o) if "image" in part}
    assert len(images) == 2
    assert all(re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", image) for image in images)
    groups = find(objects, "RayCluster")["spec"]["workerGroupSpecs"]
    limits = groups[1]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1


def test_local_asks_for_no_gpu_and_one_worker() -> None:
    objects = build("overlays/local")
    quota = find(objects, "ResourceQuota")
    assert "nvidia.com/gpu" not in yaml.safe_dump([o for o in objects if o != quota])
    groups = [part for o in objects for part in walk(o) if "groupName" in part]
    assert [group["replicas"] for group in groups] == [1, 1]


def test_the_docs_create_every_secret_the_pods_name() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    documented = set(re.findall(r"create secret generic (\S+)", text))
    assert documented == secrets_named(build("base"))


@pytest.mark.parametrize("path", sorted((ROOT / "k8s").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_file_says_purpose_cost_and_expected_result(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    for word in ("# Purpose: ", "# Cost: ", "# Expected: "):
        assert any(line.startswith(word) for line in header), f"{path.name} lacks `{word.strip()}`"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught(mistake: str) -> None:
    rule, plant = MISTAKES[mistake]
    pristine = build_with(*COMPONENTS) + rendered(queue="training")
    objects = copy.deepcopy(pristine)
    plant(objects)
    if rule.startswith("schema"):
        if rule == "schema of custom kinds" and not SCHEMAS.exists():
            pytest.skip("no schemas of custom kinds beside the repository")
        changed = [item for item in objects if item not in pristine]
        assert k8s_rules.schema_errors(changed, SCHEMAS) != []
    else:
        found = k8s_rules.broken(objects)
        assert rule in {message.partition(":")[0] for message in found}, found


def test_every_rule_has_a_planted_mistake() -> None:
    assert {rule.__name__ for rule in k8s_rules.RULES} <= {rule for rule, _ in MISTAKES.values()}


def test_rules_describe_a_sample_that_leaves_out_what_is_optional() -> None:
    """As KubeRay's own samples do; docs/kubernetes.md explains what the rules find in them."""
    containers = [{"name": "ray", "image": "rayproject/ray:2.46.0"}]
    sample: Object = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"generateName": "sample-"},
        "spec": {
            "rayVersion": "2.46.0",
            "headGroupSpec": {
                "rayStartParams": {},
                "template": {"spec": {"containers": containers}},
            },
        },
    }
    found = k8s_rules.broken([*build("base"), sample])
    assert {message.partition(":")[0] for message in found} == {
        "restricted_pods",
        "limits_are_set",
        "no_api_token",
        "token_auth",
        "disruption_is_bounded",
    }
    assert all("RayCluster/sample-" in message for message in found)


def test_quantities_of_kubernetes_are_numbers() -> None:
    assert [float(quantity(text)) for text in ("500m", "2", "1.5Gi", "2G", 3)] == [
        0.5,
        2,
        1.5 * 2**30,
        2e9,
        3,
    ]
