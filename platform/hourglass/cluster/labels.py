"""Labels of nodes: those that users give, and the versions of what is installed there.

Ray keeps the labels of every node, so machines can compare versions before they join.
"""

import re
import sys
from collections.abc import Mapping
from importlib.metadata import version

from hourglass import __version__
from hourglass.errors import ClusterError

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_OWN, _RAYS = "hourglass/", "ray.io/"
"""Prefixes of the labels that are not the user's."""


def parse_labels(text: str | None) -> dict[str, str]:
    """Labels from `key=value,key=value`. Raises ClusterError that lists every mistake."""
    labels, mistakes = {}, []
    for pair in (text or "").split(",") if text else ():
        key, separator, value = (part.strip() for part in pair.partition("="))
        name = key.rpartition("/")[2]
        if not separator or not _LABEL.fullmatch(name) or not _LABEL.fullmatch(value):
            mistakes.append(
                f"--labels: found {pair!r}, allowed is key=value, each of up to 63 letters, "
                "digits, '-', '_' and '.'"
            )
        elif key.startswith((_OWN, _RAYS)):
            mistakes.append(
                f"--labels: {key} is reserved; allowed is a key outside hourglass/ and ray.io/"
            )
        labels[key] = value
    if mistakes:
        raise ClusterError("\n".join(mistakes))
    return labels


def versions() -> dict[str, str]:
    """The versions that all nodes of a cluster must share: Python's minor, and our packages'."""
    python = ".".join(map(str, sys.version_info[:2]))
    packages = {name: version(name) for name in ("ray", "torch")}
    return {"python": python, **packages, "hourglass": __version__}


def option(labels: Mapping[str, str]) -> str:
    """The option of `ray start` with `labels` and this machine's versions."""
    # Labels have Kubernetes' syntax, without `+`.
    own = {f"{_OWN}{name}": version.replace("+", "_") for name, version in versions().items()}
    return "--labels=" + ",".join(f"{key}={value}" for key, value in {**labels, **own}.items())


def versions_in(labels: Mapping[str, str]) -> dict[str, str]:
    """The versions in a node's labels; empty for a node that hourglass did not start."""
    found = {key.removeprefix(_OWN): each for key, each in labels.items() if key.startswith(_OWN)}
    return {name: version.replace("_", "+", 1) for name, version in found.items()}


def users(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that a user gave."""
    return {key: each for key, each in labels.items() if not key.startswith((_OWN, _RAYS))}


def require_same_versions(where: str, theirs: Mapping[str, str]) -> None:
    """Raise ClusterError that names each package whose version differs from that of `where`.

    torch may be another build, as on machines with and without GPU: what follows `+` is not compared.
    """
    own = versions()
    different = [
        f"{name} {own[name]} here, {theirs[name]} there"
        for name in own
        if name in theirs and own[name].partition("+")[0] != theirs[name].partition("+")[0]
    ]
    if different:
        raise ClusterError(
            f"{where}: the versions differ ({'; '.join(different)}); install the same versions on "
            "all machines of a cluster"
        )
