"""What `cluster status` shows: how to use a node, and the nodes of its cluster."""

import os

from hourglass import ray_internals
from hourglass.cluster import daemons, labels, tokens
from hourglass.cluster.connect import ray_environment, refresh_ray
from hourglass.cluster.nodes import WORKER_PORTS, Node
from hourglass.cluster.probe import check_head, is_loopback
from hourglass.ray_internals import RayNode
from hourglass.settings import Settings

COLUMNS = ("node", "role", "state", "CPUs", "GPUs", "memory", "versions", "labels")
_GIB = 2**30


def describe(node: Node, settings: Settings) -> str:
    """Instructions for a node that is up."""
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or str(settings.root / tokens.RAY_TOKEN)
    where = "loopback only" if is_loopback(node.host) else f"this machine is {node.host}"
    role = "up" if node.head else "joined"
    lines = [f"{role}: dashboard {node.dashboard}, head {node.address}, {where}"]
    lines += [f"token in {token}" if node.secure else "OPEN: every user of this machine can use it"]
    if not is_loopback(node.host):
        ports = "; ".join(
            f"{name} {' '.join(map(str, found))}"
            for name, found in daemons.listening(node.daemons).items()
        )
        lines += [
            f"opens to the network, for holders of the token: {ports}; workers use "
            f"{WORKER_PORTS[0]} to {WORKER_PORTS[-1]}"
        ]
        lines += [
            "traffic is encrypted; the dashboard, which is not, is on the head's loopback"
            if node.tls
            else "traffic is not encrypted: use a network that you own, or --tls"
        ]
    if node.head and not is_loopback(node.host):
        also = " and `hourglass cluster certify ADDRESS`'s" if node.tls else ""
        option = " --certificate FILE" if node.tls else ""
        lines += [
            f"join:   copy the token's file{also} to the other machine, and run there "
            f"`hourglass cluster join {node.address} --token-file FILE{option}`"
        ]
    lines += [
        f"submit: hourglass submit FILE --address {node.dashboard}"
        if node.head or not node.tls
        else "submit: on the head, whose dashboard is on its loopback",
        f"stop:   hourglass cluster {'stop' if node.head else 'leave'}",
    ]
    return "\n".join(lines)


def table(settings: Settings, address: str) -> list[tuple[str, ...]]:
    """The nodes of the cluster at `address`, in the order of COLUMNS. Raises ClusterError."""
    os.environ.update(ray_environment(settings, address))
    ray_internals.require_tested_version()
    refresh_ray()
    check_head(address)
    found = ray_internals.nodes(address)
    alive = {node.host for node in found if node.alive}
    rows: list[tuple[str, ...]] = []
    for node in sorted(found, key=lambda each: (not each.head, not each.alive, each.host)):
        if not node.alive and node.host in alive:
            continue  # it came back
        found_versions = sorted(labels.versions_in(node.labels).items())
        given = sorted(labels.users(node.labels).items())
        rows.append(
            (
                node.host,
                "head" if node.head else "worker",
                "up" if node.alive else "left" if node.left else "lost",
                _used(node, "CPU"),
                _used(node, "GPU"),
                f"{node.resources.get('memory', 0) / _GIB:.1f} GiB" if node.alive else "-",
                " ".join(f"{name} {version}" for name, version in found_versions) or "-",
                " ".join(f"{key}={value}" for key, value in given) or "-",
            )
        )
    return rows


def _used(node: RayNode, name: str) -> str:
    """`used/total` of a resource of a node."""
    total = node.resources.get(name, 0.0)
    return f"{total - node.available.get(name, total):g}/{total:g}" if node.alive else "-"
