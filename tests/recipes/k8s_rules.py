"""What every manifest we ship or render must keep for security, beyond its schema (SUP-06).

Each rule reads all objects of one deployment and yields a message for each thing it finds wrong;
`broken` puts the rule's name in front.
"""

import ipaddress
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

sys.path.insert(0, str(Path(__file__).parent))
import k8s_operations
from k8s_objects import (
    Object,
    clusters,
    containers,
    environment,
    name_of,
    pods,
    selects,
    walk,
)

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
            errors += [f"{name_of(item)}: {error.message}" for error in checker.iter_errors(item)]
        else:
            try:
                kubernetes_validate.validate(item, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                errors.append(f"{name_of(item)}: {error.message}")
    return errors


def restricted_pods(objects: list[Object]) -> Iterator[str]:
    """The `restricted` Pod Security Standard, and a root file system nobody writes to."""
    for where, pod in pods(objects):
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
    for where, container in containers(objects):
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
    for where, container in containers(objects):
        for side in ("requests", "limits"):
            missing = {"cpu", "memory"} - container.get("resources", {}).get(side, {}).keys()
            if missing:
                yield f"{where}: no {' or '.join(sorted(missing))} in {side}"


def images_are_pinned(objects: list[Object]) -> Iterator[str]:
    """A tag that moves is not a version."""
    for where, container in containers(objects):
        image = container.get("image")
        if image is None:  # the autoscaler takes the head's
            continue
        tag = image.rpartition("/")[2].partition(":")[2]
        if "@sha256:" not in image and tag in ("", "latest"):
            yield f"{where}: image {image} has no fixed tag or digest"


def no_api_token(objects: list[Object]) -> Iterator[str]:
    """Only the autoscaler speaks to the API server, from a container that runs no user code."""
    for where, pod in pods(objects):
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
    for where, cluster in clusters(objects):
        if cluster.get("authOptions", {}).get("mode") != "token":
            yield f"{where}: Ray runs open; set authOptions.mode to token"
        version = [int(part) for part in cluster.get("rayVersion", "0").split(".")]
        if version < [2, 60]:
            yield f"{where}: rayVersion is below 2.60"
    for where, name, value in environment(objects):
        if name == "RAY_AUTH_MODE" and value != "token":
            yield f"{where}: RAY_AUTH_MODE is {value}"


def no_secret_values(objects: list[Object]) -> Iterator[str]:
    """Secrets are named here and made elsewhere."""
    for item in objects:
        if item["kind"] == "Secret":
            yield f"{name_of(item)}: a Secret is shipped"
        if URL_PASSWORD.search(json.dumps(item)):
            yield f"{name_of(item)}: a URL holds a password"
    for where, name, value in environment(objects):
        if SECRET_NAME.search(name) and value not in (None, "true", "false"):
            yield f"{where}: {name} has its value written down"


def nothing_is_published(objects: list[Object]) -> Iterator[str]:
    """No door to the outside is shipped; least of all to the dashboard."""
    for item in objects:
        if item["kind"] in ("Ingress", "Gateway", "HTTPRoute", "TCPRoute"):
            yield f"{name_of(item)}: publishes a service"
        for part in walk(item):
            kind = part.get("serviceType") or (part.get("type") if "ports" in part else None)
            if kind in ("LoadBalancer", "NodePort") or part.get("externalIPs"):
                yield f"{name_of(item)}: a Service of type {kind} is open to the outside"
            if part.get("enableIngress"):
                yield f"{name_of(item)}: enableIngress publishes the dashboard"
            if "hostPort" in part:
                yield f"{name_of(item)}: hostPort {part['hostPort']} opens the node"


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
                    yield f"{name_of(policy)}: an {side} rule lists no ports"
                if not rule.get(peers):
                    yield f"{name_of(policy)}: an {side} rule is open to everybody"
                for peer in rule.get(peers) or []:
                    if side == "ingress":
                        yield from _intruder(policy, peer, rule.get("ports") or [])
    for where, pod in pods(objects):
        labels = pod.get("metadata", {}).get("labels", {})
        chosen = [p for p in policies if p["spec"]["podSelector"] and selects(p, labels)]
        if not chosen:
            yield f"{where}: no NetworkPolicy lets this pod do anything"


def _intruder(policy: Object, peer: Object, ports: list[Object]) -> Iterator[str]:
    if "ipBlock" in peer:
        yield f"{name_of(policy)}: lets addresses in, not pods"
    open_ports = {
        number
        for port in ports
        for number in RAY_CONTROL_PORTS
        if port["port"] <= number <= port.get("endPort", port["port"])
    }
    operator = peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/name")
    if "namespaceSelector" in peer and open_ports and operator != OPERATOR:
        yield f"{name_of(policy)}: opens Ray's port {min(open_ports)} to other namespaces"


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
            if chosen and selects({"spec": peer}, labels):
                return True
    return False


def only_data_pods_reach_the_bucket(objects: list[Object]) -> Iterator[str]:
    """Pods have both a role and optional keys for the bucket, or, as endpoints, neither."""
    for where, pod in pods(objects):
        keys = [
            part["secretRef"]
            for part in walk(pod["spec"])
            if part.get("secretRef", {}).get("name") == "hourglass-s3"
        ]
        account = pod["spec"].get("serviceAccountName")
        if pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "serve":
            if keys or account:
                yield f"{where}: endpoints need no access to the bucket"
        elif any(not key.get("optional") for key in keys):
            yield f"{where}: Secret hourglass-s3 is required, so a role cannot replace it"
        elif bool(keys) != (account == "hourglass-data"):
            yield f"{where}: has keys without the service account, or the reverse"


RULES = (
    restricted_pods,
    limits_are_set,
    images_are_pinned,
    no_api_token,
    token_auth,
    no_secret_values,
    nothing_is_published,
    network_is_closed,
    dns_is_reachable,
    only_data_pods_reach_the_bucket,
    *k8s_operations.RULES,
)
