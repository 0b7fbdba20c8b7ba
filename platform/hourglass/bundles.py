"""What fits on the nodes of the connected cluster, and waiting for what is not there yet.

A bundle, Ray's term, is the resources of one process, which must fit on one node.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence

from hourglass import ray_internals
from hourglass.errors import ClusterError

Bundle = Mapping[str, float]
POLL_S = 0.5
GRACE_S = 2.0
"""How long a wait may take before it is mentioned: CPUs of a command that has just ended are freed."""
REPEAT_S = 60.0


def nodes() -> list[dict[str, float]]:
    """The resources of each node of the connected cluster that has CPUs."""
    import ray

    found = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return [node for node in found if node.get("CPU", 0.0) > 0]


def can_grow() -> bool:
    """False for a cluster that this process started: it has this machine and no other user."""
    return not ray_internals.started_here()


def total(nodes: Sequence[Bundle], name: str) -> float:
    """A resource of all nodes together."""
    return sum(node.get(name, 0.0) for node in nodes)


def fitting(nodes: Sequence[Bundle], bundle: Bundle) -> int:
    """How many of a bundle fit, each on one node."""
    needed = {name: amount for name, amount in bundle.items() if amount}
    return sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in needed.items())
        for node in nodes
    )


def describe(bundles: Sequence[Bundle]) -> str:
    """`4 x {CPU: 4}`, with each kind of bundle once."""
    texts = [
        "{" + ", ".join(f"{name}: {amount:g}" for name, amount in bundle.items() if amount) + "}"
        for bundle in bundles
    ]
    return " and ".join(f"{texts.count(text)} x {text}" for text in dict.fromkeys(texts))


def wait(
    bundles: Sequence[Bundle], wait_s: float, note: Callable[[str], None], advice: str
) -> None:
    """Return once all bundles are free at the same time; asks an autoscaler for nodes.

    `advice` ends the message. Raises: ClusterError after `wait_s` seconds.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    wanted = describe(bundles)
    # A group that is not placed yet is what an autoscaler, Ray's or KubeRay's, sees as demand.
    wanted_group = [
        {name: amount for name, amount in bundle.items() if amount} for bundle in bundles
    ]
    group = placement_group(wanted_group)
    began = time.monotonic()
    said = began - REPEAT_S + GRACE_S
    try:
        while not group.wait(POLL_S):
            now = time.monotonic()
            found = nodes()
            free = ray.available_resources()
            have = ", ".join(
                f"{free.get(name, 0.0):g} of {total(found, name):g} {name}s free"
                for name in _names(bundles)
            )
            have = f"the cluster has {len(found)} node{'s' * (len(found) != 1)}, {have}"
            if now - began > wait_s:
                raise ClusterError(f"waited {wait_s:g} s for {wanted}; {have}; {advice}")
            if now - said > REPEAT_S:
                said = now
                note(f"waiting for {wanted}; {have}; an autoscaler is asked for more")
    finally:
        remove_placement_group(group)


def _names(bundles: Sequence[Bundle]) -> list[str]:
    return list(dict.fromkeys(name for bundle in bundles for name, need in bundle.items() if need))
