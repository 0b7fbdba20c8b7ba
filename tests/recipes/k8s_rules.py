"""What every manifest we ship or render must keep, beyond its schema (SUP-06).

Each rule reads all objects of one deployment and yields a message for each thing it finds wrong;
`broken` puts the rule's name in front.
"""

import ipaddress
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from pydantic import ValidationError

from hourglass.config.serve import SERVE

Object = dict[str, Any]

KUBERNETES = "1.34"
OPERATOR = "kuberay-operator"
DNS_SERVERS: dict[str, tuple[Any, int]] = {
    "kube-dns": (("kube-system", {"k8s-app": "kube-dns"}), 53),
    "NodeLocal DNSCache as a pod": (("kube-system", {"k8s-app": "node-local-dns"}), 53),
    "NodeLocal DNSCache's own address": ("169.254.20.10", 53),
    "the address of the DNS Service": ("10.96.0.10", 53),
    "OpenShift's DNS": (
        ("openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "default"}),
        5353,
    ),
}
"""Who answers DNS: an address, or a namespace and labels; and the port."""
CUSTOM_GROUPS = {"ray.io", "kueue.x-k8s.io", "monitoring.coreos.com"}
RAY_CONTROL_PORTS = {6379, 8265, 10001}
SMALL_VOLUMES = {"configMap", "secret", "projected", "downwardAPI", "persistentVolumeClaim"}
SECRET_NAME = re.compile(r"(PASSWORD|TOKEN|SECRET|ACCESS_KEY|CREDENTIAL)", re.IGNORECASE)
URL_PASSWORD = re.compile(r"://[^/\s:@]+:(?!\$\()[^/\s@]+@")


def broken(objects: list[Object]) -> list[str]:
    """All broken rules, as `rule: Kind/name: message`."""
    return [f"{rule.__name__}: {text}" for rule in RULES for text in rule(objects)]


def schema_errors(objects: list[Object], schemas: Path) -> list[str]:
    """Where objects leave their schema: custom kinds by `schemas` if there, the core by the package.

    Without the folder custom kinds are checked by the rules of this file alone.
    """
    errors = []
    for item in objects:
        group, _, version = item["apiVersion"].partition("/")
        if group in CUSTOM_GROUPS:
            file = schemas / f"{item['kind']}-{group.partition('.')[0]}-{version}.json".lower()
            if not schemas.exists():
                continue
            checker = jsonschema.Draft7Validator(json.loads(file.read_text()))
            errors += [f"{_name(item)}: {error.message}" for error in checker.iter_errors(item)]
        else:
            try:
                kubernetes_validate.validate(item, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                errors.append(f"{_name(item)}: {error.message}")
    return errors


def restricted_pods(objects: list[Object]) -> Iterator[str]:
    """The `restricted` Pod Security Standard, and a root file system nobody writes to."""
    for where, pod in _pods(objects):
        spec, context = pod["spec"], pod["spec"].get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") in (None, 0):
            yield f"{where}: runs as root; set runAsNonRoot and a runAsUser"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{where}: seccompProfile is not RuntimeDefault"
        for flag in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(flag):
                yield f"{where}: {flag} is on"
        for volume in spec.get("volumes", []):
            if "emptyDir" in volume:
                if "sizeLimit" not in (volume["emptyDir"] or {}):
                    yield f"{where}: emptyDir {volume['name']} has no sizeLimit"
            elif not SMALL_VOLUMES & volume.keys():
                yield f"{where}: volume {volume['name']} is of a kind `restricted` refuses"
    for where, container in _containers(objects):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{where}: may gain privileges"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: does not drop ALL capabilities"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{where}: root file system is writable"
        if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
            yield f"{where}: runs as root"


def limits_are_set(objects: list[Object]) -> Iterator[str]:
    """CPU and memory are requested and bounded."""
    for where, container in _containers(objects):
        for side in ("requests", "limits"):
            missing = {"cpu", "memory"} - container.get("resources", {}).get(side, {}).keys()
            if missing:
                yield f"{where}: no {' or '.join(sorted(missing))} in {side}"


def images_are_pinned(objects: list[Object]) -> Iterator[str]:
    """A tag that moves is not a version."""
    for where, container in _containers(objects):
        image = container.get("image")
        if image is None:  # the autoscaler takes the head's
            continue
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            yield f"{where}: image {image} has no fixed tag or digest"


def no_api_token(objects: list[Object]) -> Iterator[str]:
    """Only the autoscaler speaks to the API server, from a container that runs no user code."""
    for where, pod in _pods(objects):
        spec = pod["spec"]
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{where}: mounts a service account token"
        if spec.get("enableServiceLinks") is not False:
            yield f"{where}: service links put MLFLOW_PORT and the like in the environment"
        tokens = {
            volume["name"]
            for volume in spec.get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [])
            if "serviceAccountToken" in source
        }
        for container in spec["containers"] + spec.get("initContainers", []):
            if tokens & {mount["name"] for mount in container.get("volumeMounts", [])}:
                yield f"{where}/{container['name']}: mounts a service account token"


def token_auth(objects: list[Object]) -> Iterator[str]:
    """Every Ray cluster asks for its token."""
    for where, cluster in _clusters(objects):
        if cluster.get("authOptions", {}).get("mode") != "token":
            yield f"{where}: Ray runs open; set authOptions.mode to token"
        version = [int(part) for part in cluster.get("rayVersion", "0").split(".")]
        if version < [2, 60]:
            yield f"{where}: rayVersion is below 2.60"
    for where, name, value in _environment(objects):
        if name == "RAY_AUTH_MODE" and value != "token":
            yield f"{where}: RAY_AUTH_MODE is {value}"


def no_secret_values(objects: list[Object]) -> Iterator[str]:
    """Secrets are named here and made elsewhere."""
    for item in objects:
        if item["kind"] == "Secret":
            yield f"{_name(item)}: a Secret is shipped"
        if URL_PASSWORD.search(json.dumps(item)):
            yield f"{_name(item)}: a URL holds a password"
    for where, name, value in _environment(objects):
        if SECRET_NAME.search(name) and value is not None:
            yield f"{where}: {name} has its value written down"


def nothing_is_published(objects: list[Object]) -> Iterator[str]:
    """No door to the outside is shipped; least of all to the dashboard."""
    for item in objects:
        if item["kind"] in ("Ingress", "Gateway", "HTTPRoute", "TCPRoute"):
            yield f"{_name(item)}: publishes a service"
        for part in walk(item):
            kind = part.get("serviceType") or (part.get("type") if "ports" in part else None)
            if kind in ("LoadBalancer", "NodePort") or part.get("externalIPs"):
                yield f"{_name(item)}: a Service of type {kind} is open to the outside"
            if part.get("enableIngress"):
                yield f"{_name(item)}: enableIngress publishes the dashboard"
            if "hostPort" in part:
                yield f"{_name(item)}: hostPort {part['hostPort']} opens the node"


def network_is_closed(objects: list[Object]) -> Iterator[str]:
    """Default deny both ways; every exception lists its ports and its peers."""
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    both = {"Ingress", "Egress"}
    if not any(
        policy["spec"]["podSelector"] == {}
        and set(policy["spec"]["policyTypes"]) == both
        and not policy["spec"].get("ingress")
        and not policy["spec"].get("egress")
        for policy in policies
    ):
        yield "no NetworkPolicy denies everything both ways"
    for policy in policies:
        for side, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(side) or []:
                if not rule.get("ports"):
                    yield f"{_name(policy)}: an {side} rule lists no ports"
                if not rule.get(peers):
                    yield f"{_name(policy)}: an {side} rule is open to everybody"
                for peer in rule.get(peers) or []:
                    if side == "ingress":
                        yield from _intruder(policy, peer, rule.get("ports") or [])
    for where, pod in _pods(objects):
        labels = pod.get("metadata", {}).get("labels", {})
        chosen = [p for p in policies if p["spec"]["podSelector"] and _selects(p, labels)]
        if not chosen:
            yield f"{where}: no NetworkPolicy lets this pod do anything"


def _intruder(policy: Object, peer: Object, ports: list[Object]) -> Iterator[str]:
    if "ipBlock" in peer:
        yield f"{_name(policy)}: lets addresses in, not pods"
    open_ports = {
        number
        for port in ports
        for number in RAY_CONTROL_PORTS
        if port["port"] <= number <= port.get("endPort", port["port"])
    }
    operator = peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name")
    if "namespaceSelector" in peer and open_ports and operator != OPERATOR:
        yield f"{_name(policy)}: opens Ray's port {min(open_ports)} to other namespaces"


def disruption_is_bounded(objects: list[Object]) -> Iterator[str]:
    """Each server and each Ray head has exactly one budget, of a form its owner supports."""
    budgets = [item for item in objects if item["kind"] == "PodDisruptionBudget"]
    for where, pod in _pods(objects):
        labels = pod["metadata"]["labels"]
        chosen = [budget for budget in budgets if _selects(budget, labels)]
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
                yield f"{_name(budget)}: Ray pods only support a whole minAvailable"


def mlflow_is_guarded(objects: list[Object]) -> Iterator[str]:
    """The tracking server answers to its own names, and nobody unpickles."""
    services = {item["metadata"]["name"] for item in objects if item["kind"] == "Service"}
    for where, container in _containers(objects):
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
    values = [(where, value) for where, name, value in _environment(objects) if name == switch]
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
    for where, pod in _pods(objects):
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
        try:
            SERVE.validate_python(yaml.safe_load(item["spec"]["serveConfigV2"]))
        except ValidationError as error:
            for one in error.errors():
                place = ".".join(map(str, one["loc"]))
                yield f"{_name(item)}: serveConfigV2 {place}: {one['msg']}"
        for where, pod in _pods([item]):
            env = pod["spec"]["containers"][0].get("env", [])
            if not any("secretKeyRef" in v.get("valueFrom", {}) for v in env):
                yield f"{where}: no HOURGLASS_SERVE_TOKEN from a Secret"


def dns_is_reachable(objects: list[Object]) -> Iterator[str]:
    """Every pod reaches the DNS servers of kubeadm, of NodeLocal DNSCache and of OpenShift."""
    for server, (peer, ports) in DNS_SERVERS.items():
        for protocol in ("UDP", "TCP"):
            if not any(
                _admits(rule, peer, protocol, ports)
                for policy in objects
                if policy["kind"] == "NetworkPolicy" and policy["spec"]["podSelector"] == {}
                for rule in policy["spec"].get("egress") or []
            ):
                yield f"no NetworkPolicy lets all pods reach {server} by {protocol}"


def _admits(rule: Object, target: Any, protocol: str, port: int) -> bool:
    """Whether an egress rule allows a port of a server: an address, or a namespace and labels."""
    if {"protocol": protocol, "port": port} not in rule["ports"]:
        return False
    for peer in rule["to"]:
        if isinstance(target, str):
            block = peer.get("ipBlock", {}).get("cidr")
            if block and ipaddress.ip_address(target) in ipaddress.ip_network(block):
                return True
        elif "namespaceSelector" in peer:
            namespace, labels = target
            chosen = peer["namespaceSelector"] == {
                "matchLabels": {"kubernetes.io/metadata.name": namespace}
            }
            if chosen and _selects({"spec": peer}, labels):
                return True
    return False


def endpoints_are_spread(objects: list[Object]) -> Iterator[str]:
    """Replicas of endpoints are on different nodes, also in an upgrade."""
    for item in objects:
        if item["kind"] != "RayService":
            continue
        for group in item["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
            pod = _as_ray_node(group["template"], "worker")
            if not any(
                part["topologyKey"] == "kubernetes.io/hostname"
                and part["whenUnsatisfiable"] == "DoNotSchedule"
                and part.get("matchLabelKeys") == ["ray.io/cluster"]
                and _selects(
                    {"spec": {"selector": part["labelSelector"]}}, pod["metadata"]["labels"]
                )
                for part in pod["spec"].get("topologySpreadConstraints", [])
            ):
                yield f"{_name(item)} {group['groupName']}: pods may share a node"


def autoscalers_are_v2(objects: list[Object]) -> Iterator[str]:
    """Version 1 of Ray's autoscaler gets no new features."""
    for where, cluster in _clusters(objects):
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
                needed[name] += times * _quantity(requests.get(name, 0))
    for quota in quotas:
        for name, amount in needed.items():
            hard = _quantity(quota["spec"]["hard"].get(f"requests.{name}", 0))
            if amount > hard:
                yield f"{_name(quota)}: requests.{name} is {hard}, the objects need {amount}"


def _at_most(objects: list[Object]) -> Iterator[tuple[str, Object, int]]:
    """Each pod template with its largest number of pods; a Deployment has one more in an upgrade."""
    counts = {
        f"{where} {group['groupName']}": group["maxReplicas"]
        for where, cluster in _clusters(objects)
        for group in cluster.get("workerGroupSpecs", [])
    } | {
        _name(item): item["spec"]["replicas"] + (item["kind"] == "Deployment")
        for item in objects
        if item["kind"] in ("Deployment", "StatefulSet")
    }
    for where, pod in _pods(objects):
        yield where, pod, counts.get(where, 1)


RULES = (
    restricted_pods,
    limits_are_set,
    images_are_pinned,
    no_api_token,
    token_auth,
    no_secret_values,
    nothing_is_published,
    network_is_closed,
    disruption_is_bounded,
    mlflow_is_guarded,
    references_resolve,
    endpoints_are_ours,
    dns_is_reachable,
    endpoints_are_spread,
    autoscalers_are_v2,
    quota_is_enough,
)


def secrets_named(objects: list[Object]) -> set[str]:
    """The Secrets these objects refer to, which somebody must create."""
    return {
        part[key]["name"]
        for item in objects
        for part in walk(item)
        for key in ("secretRef", "secretKeyRef")
        if key in part
    }


def _name(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def walk(part: Any) -> Iterator[Object]:
    """Every mapping inside, the outermost first."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            yield from walk(inner)


def _clusters(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for item in objects:
        for part in walk(item):
            if "headGroupSpec" in part:
                yield _name(item), part


def _pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod template with the labels it will run with, KubeRay's included."""
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield _name(item), item["spec"]["template"]
        if item["kind"] == "CronJob":
            yield _name(item), item["spec"]["jobTemplate"]["spec"]["template"]
        for part in walk(item):
            if "submitterPodTemplate" in part:
                yield f"{_name(item)} submitter", part["submitterPodTemplate"]
    for where, cluster in _clusters(objects):
        yield f"{where} head", _as_ray_node(cluster["headGroupSpec"]["template"], "head")
        for group in cluster.get("workerGroupSpecs", []):
            yield f"{where} {group['groupName']}", _as_ray_node(group["template"], "worker")


def _as_ray_node(template: Object, node_type: str) -> Object:
    labels = template.get("metadata", {}).get("labels", {})
    added = {"ray.io/is-ray-node": "yes", "ray.io/node-type": node_type}
    return {"metadata": {"labels": labels | added}, "spec": template["spec"]}


def _containers(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every container, the autoscaler that KubeRay adds beside a head included."""
    for where, pod in _pods(objects):
        for container in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            yield f"{where}/{container['name']}", container
    for where, cluster in _clusters(objects):
        if cluster.get("enableInTreeAutoscaling"):
            yield f"{where} head/autoscaler", cluster.get("autoscalerOptions", {})


def _environment(objects: list[Object]) -> Iterator[tuple[str, str, str | None]]:
    """(where, name, value) of every variable; the value is None when it comes from elsewhere."""
    for where, container in _containers(objects):
        for variable in container.get("env", []):
            yield where, variable["name"], variable.get("value")
    for item in objects:
        if item["kind"] == "ConfigMap":
            for name, value in item["data"].items():
                yield _name(item), name, value


def _quantity(text: Any) -> Decimal:
    """A quantity of Kubernetes as a number."""
    number, suffix = re.fullmatch(r"([0-9.]+)(m|[KMGT]i)?", str(text)).groups()
    powers = {"m": Decimal("0.001"), "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return Decimal(number) * powers.get(suffix, 1)


def _selects(item: Object, labels: dict[str, str]) -> bool:
    """Whether a policy's or a budget's selector chooses pods with these labels."""
    selector = item["spec"].get("podSelector", item["spec"].get("selector", {}))
    by_label = all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items())
    return by_label and all(
        labels.get(wanted["key"]) in wanted["values"]
        for wanted in selector.get("matchExpressions", [])
    )
