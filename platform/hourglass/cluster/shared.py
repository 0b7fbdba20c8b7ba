"""Whether all nodes of the connected cluster see the same folders and have the same versions.

A folder on the disk of one machine looks right there and is missing, or another one, elsewhere. So
before a job begins, every node reads a file that this process wrote, and writes one that it reads.
"""

import glob
import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hourglass import storage
from hourglass.cluster import labels
from hourglass.errors import ClusterError, first_line

ANSWER_S = 60.0
ENTRIES = 10_000
"""Files of a folder whose names and sizes are compared."""


def require_shared(written: str | None, read: str | Sequence[str]) -> None:
    """Raise ClusterError unless every node has the same versions and sees the same local folders.

    `written` is a folder to which nodes write, `read` are paths, with or without `*`, that they read.
    A cluster of one node passes without a look; so do `s3://` URIs.
    """
    import ray

    if not ray.is_initialized():  # asking would start a cluster
        return
    here = ray.get_runtime_context().get_node_id()
    nodes = {
        node["NodeID"]: node
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU", 0) > 0
    }
    if not nodes:
        return
    folders = [written] if written and "://" not in written else []
    paths = [path for path in ([read] if isinstance(read, str) else read) if "://" not in path]
    local = bool(folders or paths)
    labelled = {node: labels.versions_in(each["Labels"]) for node, each in nodes.items()}
    ask = list(nodes) if local else [node for node in nodes if not labelled[node]]
    mistakes = [
        mistake
        for node, each in nodes.items()
        if node not in ask
        for mistake in _different(each["NodeManagerAddress"], labelled[node])
    ]
    mistakes += _compare(ask, folders, paths) if ask else []
    if mistakes:
        raise ClusterError("\n".join(mistakes))


def _compare(node_ids: Sequence[str], written: Sequence[str], read: Sequence[str]) -> list[str]:
    """What the nodes see and this process does not, or the other way round; one sentence each."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    hosts = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in ray.nodes()}
    token = secrets.token_hex(8)
    mistakes = []
    with ExitStack() as stack:
        for folder in written:
            probe = _probe(folder, token)
            storage.write(probe, token.encode())
            stack.callback(Path(probe).unlink, missing_ok=True)
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        asked = {
            look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(token, node, written, read): node
            for node in node_ids
        }
        ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
        for answer, node in asked.items():
            host = hosts.get(node, node)
            try:
                found = ray.get(answer, timeout=0)
            except Exception as error:  # Ray's errors have no common base class
                mistakes.append(f"node {host} does not respond ({first_line(error)})")
                continue
            for folder, problem in zip(written, found["written"], strict=True):
                back = Path(_probe(folder, f"{token}-{node}"))
                if not problem and not back.is_file():
                    problem = "a file written there does not appear here"
                back.unlink(missing_ok=True)
                if problem:
                    mistakes.append(
                        f"{folder}: node {host} does not share this folder ({problem}); all nodes "
                        "write to it: use an s3:// URI (for runs: HOURGLASS_RUNS=s3://...) or a "
                        "folder on a mount that all nodes share"
                    )
            mistakes += [
                f"{path}: node {host} does not see what is here; all nodes read it: use an s3:// "
                "URI or a folder on a mount that all nodes share"
                for path, seen in zip(read, found["read"], strict=True)
                if seen != _contents(path)
            ]
            mistakes += _different(host, found["versions"])
    return mistakes


def _look(token: str, node: str, written: Sequence[str], read: Sequence[str]) -> dict[str, Any]:
    """On a node: the problem with each folder to write to, or ``""``, and what each path has."""
    problems = []
    for folder in written:
        try:
            found = Path(_probe(folder, token)).read_text()
            Path(_probe(folder, f"{token}-{node}")).write_text(token)
            problems.append("" if found == token else "it has another file of the same name")
        except FileNotFoundError:
            problems.append("a file written here does not appear there")
        except OSError as error:
            problems.append(str(error.strerror))
    return {
        "written": problems,
        "read": [_contents(path) for path in read],
        "versions": labels.versions(),
    }


def _probe(folder: str, name: str) -> str:
    return os.path.join(folder, f".shared-{name}")


def _contents(path: str) -> str:
    """A digest of the names and sizes of the files at a path or pattern; empty if there is none."""
    files = sorted(
        os.path.join(folder, name)
        for root in glob.glob(path)
        for folder, _, names in ([("", (), [root])] if os.path.isfile(root) else os.walk(root))
        for name in names
        if not name.startswith(".")
    )[:ENTRIES]
    sizes = []
    for file in files:
        with suppress(OSError):  # removed meanwhile
            sizes.append(f"{file} {os.path.getsize(file)}")
    return hashlib.sha256("\n".join(sizes).encode()).hexdigest() if sizes else ""


def _different(host: str, versions: dict[str, str]) -> list[str]:
    """How the versions of a node differ from this machine's: no sentence, or one."""
    try:
        labels.require_same_versions(f"node {host}", versions)
    except ClusterError as error:
        return [str(error)]
    return []
