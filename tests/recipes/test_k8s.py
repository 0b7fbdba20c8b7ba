"""Every manifest shipped or rendered is valid and keeps the rules, and the rules catch mistakes."""

import copy
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
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
from k8s_rules import Object

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "k8s-schemas"
BUILDS = ["base", "overlays/local", "overlays/production"]


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


def find(objects: list[Object], kind: str, name: str = "") -> Object:
    return next(o for o in objects if o["kind"] == kind and name in o["metadata"]["name"])


@pytest.mark.parametrize("folder", BUILDS)
def test_what_is_shipped_is_valid_and_keeps_the_rules(folder: str) -> None:
    objects = build(folder)
    if not SCHEMAS.exists():
        warnings.warn("no schemas beside the repository: Ray kinds by our rules only", stacklevel=1)
    assert k8s_rules.schema_errors(objects, SCHEMAS) == []
    assert k8s_rules.broken(objects) == []


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
        assert k8s_rules.broken(build("base") + objects) == []


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
    assert [part for o in build(folder) for part in k8s_rules.walk(o) if "suspend" in part] == []


def test_production_pins_every_image_by_digest_and_has_gpus() -> None:
    objects = build("overlays/production")
    images = {part["image"] for o in objects for part in k8s_rules.walk(o) if "image" in part}
    assert len(images) == 2
    assert all(re.fullmatch(r"[^@]+@sha256:[0-9a-f]{64}", image) for image in images)
    groups = find(objects, "RayCluster")["spec"]["workerGroupSpecs"]
    limits = groups[1]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1


def test_local_asks_for_no_gpu_and_one_worker() -> None:
    objects = build("overlays/local")
    quota = find(objects, "ResourceQuota")
    assert "nvidia.com/gpu" not in yaml.safe_dump([o for o in objects if o != quota])
    groups = [part for o in objects for part in k8s_rules.walk(o) if "groupName" in part]
    assert [group["replicas"] for group in groups] == [1, 1]


def test_the_docs_create_every_secret_the_pods_name() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    documented = set(re.findall(r"create secret generic (\S+)", text))
    assert documented == k8s_rules.secrets_named(build("base"))


@pytest.mark.parametrize("path", sorted((ROOT / "k8s").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_file_says_purpose_cost_and_expected_result(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    for word in ("# Purpose: ", "# Cost: ", "# Expected: "):
        assert any(line.startswith(word) for line in header), f"{path.name} lacks `{word.strip()}`"


def _pod(objects: list[Object], kind: str) -> Object:
    """The pod spec of a server, or of a Ray kind's head."""
    spec = find(objects, kind)["spec"]
    spec = spec.get("rayClusterSpec", spec.get("rayClusterConfig", spec))
    template: Object = spec["headGroupSpec"]["template"] if "Ray" in kind else spec["template"]
    pod: Object = template["spec"]
    return pod


def _workers(objects: list[Object], kind: str) -> Object:
    """The pod template of a Ray kind's first workers."""
    spec = find(objects, kind)["spec"]
    spec = spec.get("rayClusterSpec", spec.get("rayClusterConfig", spec))
    template: Object = spec["workerGroupSpecs"][0]["template"]
    return template


def _container(objects: list[Object], kind: str) -> Object:
    container: Object = _pod(objects, kind)["containers"][0]
    return container


def _add_peer(objects: list[Object]) -> None:
    rule = find(objects, "NetworkPolicy", "ray-train")["spec"]["ingress"][0]
    rule["from"].append({"namespaceSelector": {}})


def _reconfigure_endpoints(objects: list[Object], old: str, new: str) -> None:
    spec = find(objects, "RayService")["spec"]
    assert old in spec["serveConfigV2"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)


def _secret() -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {}}


def _ingress() -> Object:
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}}


# name: (the rule that must speak, or "schema"; the mistake)
MISTAKES: dict[str, tuple[str, Callable[[list[Object]], object]]] = {
    "root allowed": (
        "restricted_pods",
        lambda o: _pod(o, "RayCluster")["securityContext"].pop("runAsNonRoot"),
    ),
    "user 0": (
        "restricted_pods",
        lambda o: _pod(o, "Deployment")["securityContext"].update(runAsUser=0),
    ),
    "no seccomp": (
        "restricted_pods",
        lambda o: _pod(o, "RayJob")["securityContext"].pop("seccompProfile"),
    ),
    "privilege escalation": (
        "restricted_pods",
        lambda o: _container(o, "RayService")["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    "a capability added": (
        "restricted_pods",
        lambda o: _container(o, "RayJob")["securityContext"]["capabilities"].update(add=["CHOWN"]),
    ),
    "writable root": (
        "restricted_pods",
        lambda o: _container(o, "StatefulSet")["securityContext"].update(
            readOnlyRootFilesystem=False
        ),
    ),
    "unsized scratch": (
        "restricted_pods",
        lambda o: _pod(o, "RayCluster")["volumes"][0].update(emptyDir={}),
    ),
    "host path": (
        "restricted_pods",
        lambda o: _pod(o, "Deployment")["volumes"].append(
            {"name": "host", "hostPath": {"path": "/"}}
        ),
    ),
    "host network": (
        "restricted_pods",
        lambda o: _pod(o, "RayService").update(hostNetwork=True),
    ),
    "open autoscaler": (
        "restricted_pods",
        lambda o: find(o, "RayCluster")["spec"].update(enableInTreeAutoscaling=True),
    ),
    "submitter as root": (
        "restricted_pods",
        lambda o: find(o, "RayJob")["spec"]["submitterPodTemplate"]["spec"].pop("securityContext"),
    ),
    "no memory limit": (
        "limits_are_set",
        lambda o: _container(o, "RayJob")["resources"]["limits"].pop("memory"),
    ),
    "no resources": ("limits_are_set", lambda o: _container(o, "Deployment").pop("resources")),
    "latest": (
        "images_are_pinned",
        lambda o: _container(o, "RayCluster").update(image="hourglass:latest"),
    ),
    "no tag": (
        "images_are_pinned",
        lambda o: _container(o, "StatefulSet").update(image="registry.example:5000/postgres"),
    ),
    "API token mounted": (
        "no_api_token",
        lambda o: _pod(o, "RayService").pop("automountServiceAccountToken"),
    ),
    "service links": ("no_api_token", lambda o: _pod(o, "Deployment").pop("enableServiceLinks")),
    "API token for user code": (
        "no_api_token",
        lambda o: (
            _pod(o, "RayJob")["volumes"].append(
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
            ),
            _container(o, "RayJob")["volumeMounts"].append({"name": "t", "mountPath": "/t"}),
        ),
    ),
    "Ray open": ("token_auth", lambda o: find(o, "RayCluster")["spec"].pop("authOptions")),
    "Ray auth switched off": (
        "token_auth",
        lambda o: find(o, "ConfigMap")["data"].update(RAY_AUTH_MODE="disabled"),
    ),
    "old Ray": (
        "token_auth",
        lambda o: find(o, "RayService")["spec"]["rayClusterConfig"].update(rayVersion="2.51.0"),
    ),
    "Secret shipped": ("no_secret_values", lambda o: o.append(_secret())),
    "key in the ConfigMap": (
        "no_secret_values",
        lambda o: find(o, "ConfigMap")["data"].update(AWS_SECRET_ACCESS_KEY="abc"),
    ),
    "password in a URL": (
        "no_secret_values",
        lambda o: find(o, "ConfigMap")["data"].update(MLFLOW_TRACKING_URI="http://me:pw@mlflow"),
    ),
    "token written down": (
        "no_secret_values",
        lambda o: _container(o, "RayService")["env"].append(
            {"name": "HOURGLASS_SERVE_TOKEN", "value": "abc"}
        ),
    ),
    "Ingress": ("nothing_is_published", lambda o: o.append(_ingress())),
    "dashboard on a LoadBalancer": (
        "nothing_is_published",
        lambda o: find(o, "RayCluster")["spec"]["headGroupSpec"].update(serviceType="LoadBalancer"),
    ),
    "MLflow on a NodePort": (
        "nothing_is_published",
        lambda o: find(o, "Service", "mlflow")["spec"].update(type="NodePort"),
    ),
    "dashboard by enableIngress": (
        "nothing_is_published",
        lambda o: find(o, "RayCluster")["spec"]["headGroupSpec"].update(enableIngress=True),
    ),
    "no default deny": (
        "network_is_closed",
        lambda o: o.remove(find(o, "NetworkPolicy", "default-deny")),
    ),
    "default deny one way": (
        "network_is_closed",
        lambda o: find(o, "NetworkPolicy", "default-deny")["spec"].update(policyTypes=["Ingress"]),
    ),
    "all ports": (
        "network_is_closed",
        lambda o: find(o, "NetworkPolicy", "postgres")["spec"]["ingress"][0].pop("ports"),
    ),
    "every namespace reaches the dashboard": ("network_is_closed", _add_peer),
    "everybody reaches MLflow": (
        "network_is_closed",
        lambda o: find(o, "NetworkPolicy", "mlflow")["spec"]["ingress"][0].pop("from"),
    ),
    "pod without a policy": (
        "network_is_closed",
        lambda o: find(o, "StatefulSet")["spec"]["template"]["metadata"]["labels"].clear(),
    ),
    "no budget": (
        "disruption_is_bounded",
        lambda o: o.remove(find(o, "PodDisruptionBudget", "big-job-head")),
    ),
    "two budgets for one pod": (
        "disruption_is_bounded",
        lambda o: find(o, "PodDisruptionBudget", "mlflow")["spec"].update(selector={}),
    ),
    "a budget Ray pods do not support": (
        "disruption_is_bounded",
        lambda o: find(o, "PodDisruptionBudget", "endpoints")["spec"].update(minAvailable="50%"),
    ),
    "MLflow answers any host": (
        "mlflow_is_guarded",
        lambda o: _container(o, "Deployment")["command"].append("--allowed-hosts=*"),
    ),
    "MLflow refuses its Service": (
        "mlflow_is_guarded",
        lambda o: find(o, "Service", "mlflow")["metadata"].update(name="tracking"),
    ),
    "pickle allowed": (
        "mlflow_is_guarded",
        lambda o: find(o, "ConfigMap")["data"].update(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="true"),
    ),
    "ConfigMap missing": ("references_resolve", lambda o: o.remove(find(o, "ConfigMap"))),
    "claim missing": (
        "references_resolve",
        lambda o: o.remove(find(o, "PersistentVolumeClaim")),
    ),
    "volume missing": ("references_resolve", lambda o: _pod(o, "RayCluster")["volumes"].clear()),
    "other code served": (
        "endpoints_are_ours",
        lambda o: _reconfigure_endpoints(o, "hourglass.serving.app:build", "evil:build"),
    ),
    "an argument our builder does not know": (
        "endpoints_are_ours",
        lambda o: _reconfigure_endpoints(o, "ingress_replicas", "ingress_copies"),
    ),
    "endpoints without a token": (
        "endpoints_are_ours",
        lambda o: _container(o, "RayService").pop("env"),
    ),
    "DNS on the node": (
        "dns_is_reachable",
        lambda o: find(o, "NetworkPolicy", "dns")["spec"]["egress"][0]["to"].pop(1),
    ),
    "DNS of OpenShift": (
        "dns_is_reachable",
        lambda o: find(o, "NetworkPolicy", "dns")["spec"]["egress"].pop(1),
    ),
    "DNS by UDP only": (
        "dns_is_reachable",
        lambda o: find(o, "NetworkPolicy", "dns")["spec"]["egress"][0]["ports"].pop(1),
    ),
    "replicas on one node": (
        "endpoints_are_spread",
        lambda o: _workers(o, "RayService")["spec"].pop("topologySpreadConstraints"),
    ),
    "a spread that counts other pods": (
        "endpoints_are_spread",
        lambda o: _workers(o, "RayService")["metadata"]["labels"].update(
            {"app.kubernetes.io/instance": "other"}
        ),
    ),
    "autoscaler v1": (
        "autoscalers_are_v2",
        lambda o: find(o, "RayCluster")["spec"].update(enableInTreeAutoscaling=True),
    ),
    "no quota": ("quota_is_enough", lambda o: o.remove(find(o, "ResourceQuota"))),
    "more workers than the quota": (
        "quota_is_enough",
        lambda o: find(o, "RayCluster")["spec"]["workerGroupSpecs"][0].update(maxReplicas=20),
    ),
    "a backup as root": (
        "restricted_pods",
        lambda o: find(o, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
            "initContainers"
        ][0]["securityContext"].update(runAsUser=0),
    ),
    "misspelt field": ("schema", lambda o: find(o, "Deployment")["spec"].update(replica=2)),
    "wrong type": ("schema", lambda o: find(o, "StatefulSet")["spec"].update(replicas="one")),
    "misspelt in Ray": (
        "schema of Ray",
        lambda o: find(o, "RayCluster")["spec"].update(headGroup={}),
    ),
    "wrong type in Ray": (
        "schema of Ray",
        lambda o: find(o, "RayJob")["spec"].update(backoffLimit="2"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught(mistake: str) -> None:
    rule, plant = MISTAKES[mistake]
    pristine = build("base") + rendered()
    objects = copy.deepcopy(pristine)
    plant(objects)
    if rule.startswith("schema"):
        if rule == "schema of Ray" and not SCHEMAS.exists():
            pytest.skip("no schemas of Ray's kinds beside the repository")
        changed = [item for item in objects if item not in pristine]
        assert k8s_rules.schema_errors(changed, SCHEMAS) != []
    else:
        found = k8s_rules.broken(objects)
        assert rule in {message.partition(":")[0] for message in found}, found


def test_every_rule_has_a_planted_mistake() -> None:
    assert {rule.__name__ for rule in k8s_rules.RULES} <= {rule for rule, _ in MISTAKES.values()}
