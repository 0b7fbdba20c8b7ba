"""The command that prints Kubernetes objects, and how its options are read."""

import re
from typing import Annotated, Any

import typer

from hourglass.cli.arguments import File, Overrides

_TOLERATION = re.compile(
    r"(?P<key>[^=:]+)(?:=(?P<value>[^:]+))?(?::(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?"
)
_MANY = list[str] | None


def render(
    file: File,
    overrides: Overrides = None,
    image: Annotated[str, typer.Option(help="Container image of the pods.")] = "hourglass:local",
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of the objects; default: kubectl's.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker pods, where the file says auto.")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs per worker, where the file says auto.")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=0, help="GPUs per worker pod; decides an accelerator that is auto."),
    ] = None,
    memory_gib: Annotated[int, typer.Option(min=1, help="Memory per worker pod in GiB.")] = 8,
    ephemeral_storage_gib: Annotated[
        int, typer.Option(min=1, help="Scratch space per Ray pod in GiB.")
    ] = 20,
    node_selector: Annotated[
        _MANY, typer.Option(metavar="KEY=VALUE", help="Node label that workers need; repeatable.")
    ] = None,
    toleration: Annotated[
        _MANY,
        typer.Option(
            metavar="KEY[=VALUE][:EFFECT]", help="Taint that workers tolerate; repeatable."
        ),
    ] = None,
    topology_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Node label to spread workers over; endpoints are always spread over nodes.",
        ),
    ] = None,
    pull_secret: Annotated[
        _MANY, typer.Option(metavar="SECRET", help="Secret of the image registry; repeatable.")
    ] = None,
    volume: Annotated[
        _MANY,
        typer.Option(
            metavar="CLAIM:PATH", help="PersistentVolumeClaim to mount in Ray pods; repeatable."
        ),
    ] = None,
    deadline_s: Annotated[
        int | None, typer.Option(min=1, help="Seconds a job may take; default: 86400.")
    ] = None,
    ttl_s: Annotated[
        int | None,
        typer.Option(min=0, help="Seconds a job's cluster is kept at the end; default: 600."),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="LOCALQUEUE", help="Kueue's LocalQueue.")
    ] = None,
    priority_class: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Kueue's WorkloadPriorityClass.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="CRON", help="Run the job on a schedule: a RayCronJob.")
    ] = None,
    time_zone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Of the schedule; default: Etc/UTC.")
    ] = None,
    gateway_class: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS", help="GatewayClass that shifts traffic in an incremental upgrade."
        ),
    ] = None,
) -> None:
    """Print Kubernetes objects that run a job or serve file.

    Prints what `auto` became to stderr. The cluster needs the KubeRay operator.
    """
    from hourglass.cluster import render as objects
    from hourglass.cluster.pods import PodOptions
    from hourglass.cluster.workload import Sizes
    from hourglass.errors import SpecError

    mistakes: list[str] = []
    pod = PodOptions(
        image=image,
        memory_gib=memory_gib,
        ephemeral_storage_gib=ephemeral_storage_gib,
        node_selector=_pairs(node_selector or [], mistakes),
        tolerations=_tolerations(toleration or [], mistakes),
        pull_secrets=tuple(pull_secret or ()),
        volumes=_volumes(volume or [], mistakes),
        topology_key=topology_key,
    )
    run = objects.RunOptions(
        namespace, deadline_s, ttl_s, queue, priority_class, schedule, time_zone, gateway_class
    )
    if mistakes:
        raise SpecError("\n".join(mistakes))
    workload = _workload(file, overrides or [], Sizes(workers, cpus, gpus), pod)
    found = objects.manifests(workload, pod, run)
    for note in (*workload.notes, workload.when_scheduled if schedule else ""):
        if note:
            typer.echo(f"note: {note}", err=True)
    typer.echo(objects.to_yaml(found), nl=False)


def _workload(file: str, overrides: list[str], sizes: Any, pod: Any) -> Any:
    """The workload of a job or serve file; its mistakes are all listed. Raises SpecError."""
    from pathlib import Path

    from hourglass.cluster import workload
    from hourglass.config import errors, files, serve

    if serve.is_serve_file(errors.read_yaml(file)[0]):
        endpoints = serve.load(file, overrides)
        return workload.of_endpoints(endpoints, Path(file).stem, sizes, pod.volumes)
    return workload.of_job(files.load(file, overrides), sizes, pod.volumes)


def _pairs(texts: list[str], mistakes: list[str]) -> tuple[tuple[str, str], ...]:
    found = []
    for text in texts:
        key, equals, value = text.partition("=")
        if key and equals:
            found.append((key, value))
        else:
            mistakes.append(f"--node-selector {text}: allowed is KEY=VALUE")
    return tuple(found)


def _tolerations(texts: list[str], mistakes: list[str]) -> tuple[dict[str, str], ...]:
    found = []
    for text in texts:
        parts = _TOLERATION.fullmatch(text)
        if parts is None:
            mistakes.append(
                f"--toleration {text}: allowed is KEY, KEY=VALUE, and either with :NoSchedule, "
                ":PreferNoSchedule or :NoExecute"
            )
            continue
        given = {name: value for name, value in parts.groupdict().items() if value}
        found.append({"operator": "Equal" if "value" in given else "Exists"} | given)
    return tuple(found)


def _volumes(texts: list[str], mistakes: list[str]) -> tuple[Any, ...]:
    import os

    from hourglass.cluster.workload import Volume

    found = []
    for text in texts:
        claim, _, path = text.partition(":")
        if claim and path.startswith("/") and os.path.normpath(path) not in ("/", "/tmp"):
            found.append(Volume(claim, os.path.normpath(path)))
        else:
            mistakes.append(
                f"--volume {text}: allowed is CLAIM:PATH with an absolute path other than / and /tmp"
            )
    return tuple(found)
