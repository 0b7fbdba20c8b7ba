"""What keeps a deployment running: budgets, quotas, references, endpoints, queues, metrics.

Each rule reads all objects of one deployment and yields a message for each thing it finds wrong.
"""

import json
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import ray
import yaml
from pydantic import ValidationError

from hourglass.config.serve import SERVE
from hourglass.serving import metrics as serving
from hourglass.training import metrics as training

sys.path.insert(0, str(Path(__file__).parent))
from k8s_objects import (
    Object,
    as_ray_node,
    clusters,
    containers,
    environment,
    name_of,
    pods,
    quantity,
    selects,
    walk,
)

OUR_METRICS = {
    *(f"ray_{name}" for name, _ in training.EPOCH.values()),
    f"ray_{training.RESTARTS}",
    f"ray_{serving.ROWS}_total",
    f"ray_{serving.ERRORS}_total",
    *(f"ray_{serving.LATENCY}_{suffix}" for suffix in ("bucket", "count", "sum")),
}
OTHER_METRICS = {"kube_cronjob_status_last_successful_time"}
METRICS_PORT = 8080
"""The port `metrics` that KubeRay adds to every Ray container."""


def disruption_is_bounded(objects: list[Object]) -> Iterator[str]:
    """Each server and each Ray head has exactly one budget, of a form its owner supports."""
    budgets = [item for item in objects if item["kind"] == "PodDisruptionBudget"]
    for where, pod in pods(objects):
        labels = pod["metadata"].get("labels", {})
        chosen = [budget for budget in budgets if selects(budget, labels)]
        if len(chosen) > 1:
            yield f"{where}: {len(chosen)} budgets choose this pod, so no eviction works"
        replaceable = labels.get("ray.io/node-type") == "worker" or "submitter" in where
        replaceable = replaceable or where.startswith("CronJob")
        if not chosen and not replaceable:
            yield f"{where}: no PodDisruptionBudget"
        for budget in chosen:
            if "ray.io/node-type" in labels and not isinstance(
                budget["spec"].get("minAvailable"), int
            ):
                yield f"{name_of(budget)}: Ray pods only support a whole minAvailable"


def mlflow_is_guarded(objects: list[Object]) -> Iterator[str]:
    """The tracking server answers to its own names, and nobody unpickles."""
    services = {item["metadata"]["name"] for item in objects if item["kind"] == "Service"}
    for where, container in containers(objects):
        words = container.get("command", []) + container.get("args", [])
        if words[:2] != ["mlflow", "server"]:
            continue
        hosts = [
            host
            for word in words
            if word.startswith("--allowed-hosts=")
            for host in word.partition("=")[2].split(",")
        ]
        if any("*" in host for host in hosts):
            yield f"{where}: --allowed-hosts lets any host in"
        if not {host.partition(":")[0] for host in hosts} & services:
            yield f"{where}: --allowed-hosts lacks the name of its Service"
    switch = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
    values = [(where, value) for where, name, value in environment(objects) if name == switch]
    if not values:
        yield f"{switch} is not set"
    for where, value in values:
        if value != "false":
            yield f"{where}: {switch} is {value}"


def references_resolve(objects: list[Object]) -> Iterator[str]:
    """What a pod names is there: ConfigMaps, volumes, claims."""
    maps = {item["metadata"]["name"] for item in objects if item["kind"] == "ConfigMap"}
    claims = {
        item["metadata"]["name"] for item in objects if item["kind"] == "PersistentVolumeClaim"
    }
    for where, pod in pods(objects):
        spec = pod["spec"]
        # "data" is the claim of the StatefulSet, which stands beside its pod template.
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | {"data"}
        for container in spec["containers"] + spec.get("initContainers", []):
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{where}: no volume {mount['name']}"
        for part in walk(spec):
            if part.get("claimName", "") not in claims | {""}:
                yield f"{where}: no PersistentVolumeClaim {part['claimName']}"
            for key in ("configMapRef", "configMapKeyRef", "configMap"):
                if key in part and part[key]["name"] not in maps | {"kube-root-ca.crt"}:
                    yield f"{where}: no ConfigMap {part[key]['name']}"


def endpoints_are_ours(objects: list[Object]) -> Iterator[str]:
    """A RayService runs our application builder, behind its own token."""
    for item in objects:
        if item["kind"] != "RayService":
            continue
        served = yaml.safe_load(item["spec"]["serveConfigV2"])
        if "controller_options" not in served:  # our default, which Ray does not know
            yield f"{name_of(item)}: serveConfigV2 lacks controller_options, which guard the proxy"
        try:
            SERVE.validate_python(served)
        except ValidationError as error:
            for one in error.errors():
                place = ".".join(map(str, one["loc"]))
                yield f"{name_of(item)}: serveConfigV2 {place}: {one['msg']}"
        for where, pod in pods([item]):
            env = pod["spec"]["containers"][0].get("env", [])
            if not any("secretKeyRef" in v.get("valueFrom", {}) for v in env):
                yield f"{where}: no HOURGLASS_SERVE_TOKEN from a Secret"


def endpoints_are_spread(objects: list[Object]) -> Iterator[str]:
    """Replicas of endpoints are on different nodes, also in an upgrade."""
    for item in objects:
        if item["kind"] != "RayService":
            continue
        for group in item["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
            pod = as_ray_node(group["template"], "worker")
            if not any(
                part["topologyKey"] == "kubernetes.io/hostname"
                and part["whenUnsatisfiable"] == "DoNotSchedule"
                and part.get("matchLabelKeys") == ["ray.io/cluster"]
                and selects(
                    {"spec": {"selector": part["labelSelector"]}}, pod["metadata"]["labels"]
                )
                for part in pod["spec"].get("topologySpreadConstraints", [])
            ):
                yield f"{name_of(item)} {group['groupName']}: pods may share a node"


def autoscalers_are_v2(objects: list[Object]) -> Iterator[str]:
    """Version 1 of Ray's autoscaler gets no new features."""
    for where, cluster in clusters(objects):
        version = cluster.get("autoscalerOptions", {}).get("version")
        if cluster.get("enableInTreeAutoscaling") and version != "v2":
            yield f"{where}: autoscaler {version}; set autoscalerOptions.version to v2"


def quota_is_enough(objects: list[Object]) -> Iterator[str]:
    """What is deployed fits the quota at its largest size, with twice the endpoints in an upgrade."""
    quotas = [item for item in objects if item["kind"] == "ResourceQuota"]
    if not quotas:
        yield "no ResourceQuota"
    needed = dict.fromkeys(("cpu", "memory", "nvidia.com/gpu"), Decimal(0))
    for where, pod, count in _at_most(objects):
        for container in pod["spec"]["containers"]:
            requests = container.get("resources", {}).get("requests", {})
            for name in needed:
                times = count * (2 if where.startswith("RayService") else 1)
                needed[name] += times * quantity(requests.get(name, 0))
    for quota in quotas:
        for name, amount in needed.items():
            hard = quantity(quota["spec"]["hard"].get(f"requests.{name}", 0))
            if amount > hard:
                yield f"{name_of(quota)}: requests.{name} is {hard}, the objects need {amount}"


def _at_most(objects: list[Object]) -> Iterator[tuple[str, Object, int]]:
    """Each pod template with its largest number of pods; a Deployment has one more in an upgrade."""
    counts = {
        f"{where} {group['groupName']}": group.get("maxReplicas", group.get("replicas", 1))
        for where, cluster in clusters(objects)
        for group in cluster.get("workerGroupSpecs", [])
    } | {
        name_of(item): item["spec"]["replicas"] + (item["kind"] == "Deployment")
        for item in objects
        if item["kind"] in ("Deployment", "StatefulSet")
    }
    for where, pod in pods(objects):
        yield where, pod, counts.get(where, 1)


def queues_cover_jobs(objects: list[Object]) -> Iterator[str]:
    """Kueue never admits a job that requests a resource without quota, or names no queue."""
    queues = {item["metadata"]["name"] for item in objects if item["kind"] == "LocalQueue"}
    covered = {
        name
        for item in objects
        if item["kind"] == "ClusterQueue"
        for group in item["spec"]["resourceGroups"]
        for name in group["coveredResources"]
    }
    for item in objects:
        queue = item["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        if queue is None:
            continue
        if queue not in queues:
            yield f"{name_of(item)}: no LocalQueue {queue}"
        for _, container in containers([item]):
            missing = container["resources"]["requests"].keys() - covered
            if missing:
                yield f"{name_of(item)}: no quota for {', '.join(sorted(missing))}"


def home_is_shared(objects: list[Object]) -> Iterator[str]:
    """The outbox of a driver outlives its pod: HOURGLASS_HOME is in a claim that many pods mount."""
    homes = {value for _, name, value in environment(objects) if name == "HOURGLASS_HOME"}
    for where, pod in pods(objects):
        labels = pod["metadata"].get("labels", {})
        if labels.get("app.kubernetes.io/component") not in ("cluster", "train"):
            continue
        if "ray.io/is-ray-node" not in labels:
            continue
        claims = {v["name"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v}
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        if not homes & {mount["mountPath"] for mount in mounts if mount["name"] in claims}:
            yield f"{where}: HOURGLASS_HOME is not in a claim"


def database_is_kept(objects: list[Object]) -> Iterator[str]:
    """MLflow's schema is upgraded by its own image, and its database is dumped every day."""
    dumps = []
    for where, pod in pods(objects):
        first = [c for c in pod["spec"].get("initContainers", []) if "command" in c]
        main = pod["spec"]["containers"][0]
        if main.get("command", [])[:2] == ["mlflow", "server"] and not any(
            c["command"][:3] == ["mlflow", "db", "upgrade"] and c["image"] == main["image"]
            for c in first
        ):
            yield f"{where}: nothing upgrades the database before this server starts"
        dumps += [where for c in first if any("pg_dump" in word for word in c["command"])]
    for item in objects:
        if name_of(item) in dumps and item["spec"].get("concurrencyPolicy") != "Forbid":
            yield f"{name_of(item)}: two backups may run at a time"
    if any(item["kind"] == "StatefulSet" for item in objects) and not any(
        where.startswith("CronJob") for where in dumps
    ):
        yield "no CronJob dumps the database"


def metrics_exist(objects: list[Object]) -> Iterator[str]:
    """Alerts and dashboards name metrics that we, Ray's own dashboards or kube-state-metrics have."""
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    rays = {
        name for file in folder.glob("*.py") for name in re.findall(r"ray_\w+", file.read_text())
    }
    for item in objects:
        parts: list[object] = [item] if item["kind"] == "PrometheusRule" else []
        if item["kind"] == "ConfigMap":
            files = item["data"].items()
            parts = [json.loads(text) for name, text in files if name.endswith(".json")]
        for part in parts:
            named = set(re.findall(r"\b(?:ray|kube)_\w+", "\n".join(_queries(part))))
            for name in sorted(named - OUR_METRICS - OTHER_METRICS - rays):
                yield f"{name_of(item)}: no metric {name}"


def _queries(part: object) -> Iterator[str]:
    for inner in walk(part):
        for key in ("expr", "query"):
            if isinstance(inner.get(key), str):
                yield inner[key]


def metrics_are_scraped(objects: list[Object]) -> Iterator[str]:
    """A PodMonitor's pods accept Prometheus on their metrics port."""
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    for item in objects:
        if item["kind"] != "PodMonitor":
            continue
        chosen = [pod for pod in pods(objects) if selects(item, pod[1]["metadata"]["labels"])]
        if not chosen:
            yield f"{name_of(item)}: selects no pod"
        for where, pod in chosen:
            if not any(
                {"protocol": "TCP", "port": METRICS_PORT} in rule["ports"]
                for policy in policies
                if selects(policy, pod["metadata"]["labels"])
                for rule in policy["spec"].get("ingress") or []
            ):
                yield f"{where}: no NetworkPolicy lets Prometheus in"


RULES = (
    disruption_is_bounded,
    mlflow_is_guarded,
    references_resolve,
    endpoints_are_ours,
    endpoints_are_spread,
    autoscalers_are_v2,
    quota_is_enough,
    queues_cover_jobs,
    home_is_shared,
    database_is_kept,
    metrics_exist,
    metrics_are_scraped,
)
