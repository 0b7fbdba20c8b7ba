"""What the objects of a deployment contain: pods as they will run, containers, variables."""

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

Object = dict[str, Any]

SUFFIXES = {"": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def secrets_named(objects: list[Object]) -> set[str]:
    """The Secrets these objects refer to, which somebody must create."""
    return {
        part[key]["name"]
        for item in objects
        for part in walk(item)
        for key in ("secretRef", "secretKeyRef")
        if key in part
    }


def name_of(item: Object) -> str:
    meta = item["metadata"]
    return f"{item['kind']}/{meta.get('name') or meta.get('generateName')}"


def walk(part: Any) -> Iterator[Object]:
    """Every mapping inside, the outermost first."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from walk(inner)


def clusters(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for item in objects:
        for part in walk(item):
            if "headGroupSpec" in part:
                yield name_of(item), part


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod template with the labels it will run with, KubeRay's included."""
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield name_of(item), item["spec"]["template"]
        if item["kind"] == "CronJob":
            yield name_of(item), item["spec"]["jobTemplate"]["spec"]["template"]
        for part in walk(item):
            if "submitterPodTemplate" in part:
                yield f"{name_of(item)} submitter", {"metadata": {}, **part["submitterPodTemplate"]}
    for where, cluster in clusters(objects):
        yield f"{where} head", as_ray_node(cluster["headGroupSpec"]["template"], "head")
        for group in cluster.get("workerGroupSpecs", []):
            yield f"{where} {group['groupName']}", as_ray_node(group["template"], "worker")


def as_ray_node(template: Object, node_type: str) -> Object:
    labels = template.get("metadata", {}).get("labels", {})
    added = {"ray.io/is-ray-node": "yes", "ray.io/node-type": node_type}
    return {"metadata": {"labels": labels | added}, "spec": template["spec"]}


def containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every container, the autoscaler that KubeRay adds beside a head included."""
    for where, pod in pods(objects):
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            yield f"{where}/{container['name']}", container
    for where, cluster in clusters(objects):
        if cluster.get("enableInTreeAutoscaling"):
            yield f"{where} head/autoscaler", cluster.get("autoscalerOptions", {})


def environment(objects: list[Object]) -> Iterator[tuple[str, str, str | None]]:
    """(where, name, value) of every variable; the value is None when it comes from elsewhere."""
    for where, container in containers(objects):
        for variable in container.get("env", []):
            yield where, variable["name"], variable.get("value")
    for item in objects:
        if item["kind"] == "ConfigMap":
            for name, value in item["data"].items():
                yield name_of(item), name, value


def quantity(text: Any) -> Decimal:
    """A quantity of Kubernetes as a number."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert found, text
    return Decimal(found[1]) * SUFFIXES[found[2]]


def selects(item: Object, labels: dict[str, str]) -> bool:
    """Whether a policy's or a budget's selector chooses pods with these labels."""
    selector = item["spec"].get("podSelector", item["spec"].get("selector", {}))
    by_label = all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())
    return by_label and all(
        labels.get(wanted["key"]) in wanted["values"]
        for wanted in selector.get("matchExpressions", [])
    )
