"""A job or serve file as Kubernetes objects, which `hourglass render` prints.

The functions are pure and contact no cluster. The objects need a namespace where `k8s/base` is
applied: its ConfigMap, Secrets and claim are their environment, and its NetworkPolicies admit pods
labelled `train`, `serve` and `submitter`.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import yaml

from hourglass.cluster import pods
from hourglass.cluster.pods import Manifest, PodOptions
from hourglass.cluster.workload import Workload
from hourglass.errors import SpecError

# KubeRay adds suffixes for the job's cluster and its services, and for each scheduled job, so it
# refuses longer names.
NAME_LIMIT = 47
SCHEDULED_NAME_LIMIT = 36
JOB_FOLDER = "/etc/hourglass"
JOB_BYTES_LIMIT = 900_000  # a ConfigMap holds 1 MiB, keys and metadata included
DEADLINE_S = 86_400
TTL_S = 600
CRON = re.compile(
    r"(?:[0-9A-Za-z*/,?-]+ ){4}[0-9A-Za-z*/,?-]+|@(?:yearly|monthly|weekly|daily|hourly)"
)


@dataclass(frozen=True)
class RunOptions:
    """When and how long the objects run, and who admits them."""

    namespace: str | None = None
    deadline_s: int | None = None
    ttl_s: int | None = None
    queue: str | None = None
    priority_class: str | None = None
    schedule: str | None = None
    time_zone: str | None = None
    gateway_class: str | None = None


def manifests(workload: Workload, options: PodOptions, run: RunOptions) -> list[Manifest]:
    """A RayService for a serve file; for a job a RayJob, or a RayCronJob with `schedule`.

    Raises: SpecError listing all options that do not fit the file or each other.
    """
    mistakes = _mistakes(workload, run)
    content = yaml.safe_dump(workload.content, sort_keys=False)
    if len(content.encode()) > JOB_BYTES_LIMIT:
        mistakes.append(
            f"job file: found {len(content.encode())} bytes, allowed are {JOB_BYTES_LIMIT} because "
            "of the size of a ConfigMap; replace a long list of shards in data.uri by a folder or "
            "a glob"
        )
    if mistakes:
        raise SpecError("\n".join(mistakes))
    make = _service if workload.kind == "serve" else _job
    return make(workload, content, options, run)


def to_yaml(objects: list[Manifest]) -> str:
    """The objects as one YAML stream, for `kubectl apply -f -`."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=100)


def dns_name(text: str, limit: int = NAME_LIMIT) -> str:
    """`text` as a Kubernetes name; a long one is truncated and made unique by a hash.

    Raises: SpecError if no letter or digit remains.
    Source: RFC 1123 section 2.1 and RFC 1035 section 2.3.1 (starts with a letter).
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name:
        raise SpecError(f"name: found {text!r}, allowed is a name with a letter or digit")
    if not name[0].isalpha():
        name = f"job-{name}"
    if len(name) > limit:
        name = f"{name[: limit - 7].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return name


def _mistakes(workload: Workload, run: RunOptions) -> list[str]:
    """Options without effect, or that the operator or Kueue would refuse."""
    found = []
    if workload.kind == "serve":
        for option, value in (
            ("--deadline-s", run.deadline_s),
            ("--ttl-s", run.ttl_s),
            ("--schedule", run.schedule),
        ):
            if value is not None:
                found.append(f"{option} {value}: a serve file has no end; remove it")
        if run.queue and _autoscales(workload, run):
            found.append(
                f"--queue {run.queue}: Kueue reserves a fixed number of pods, and these endpoints scale; "
                "set replicas to a number, without --gateway-class"
            )
    elif run.gateway_class:
        found.append(
            f"--gateway-class {run.gateway_class}: only a serve file is upgraded; remove it"
        )
    if run.priority_class and not run.queue:
        found.append(f"--priority-class {run.priority_class}: only Kueue reads it; add --queue")
    if run.schedule is None and run.time_zone:
        found.append(f"--time-zone {run.time_zone}: has no effect without --schedule")
    if run.schedule is not None and not CRON.fullmatch(run.schedule):
        found.append(
            f"--schedule {run.schedule}: allowed are five fields of cron ('0 2 * * *') and @hourly, "
            "@daily, @weekly, @monthly and @yearly; a time zone goes into --time-zone"
        )
    if run.schedule is not None and run.queue:
        found.append(
            f"--queue {run.queue}: KubeRay copies no labels to scheduled jobs; name the LocalQueue of "
            "the namespace `default` instead, which takes jobs without a label"
        )
    return found


def _autoscales(workload: Workload, run: RunOptions) -> bool:
    """An incremental upgrade moves capacity by the autoscaler."""
    return workload.most_workers > workload.workers or run.gateway_class is not None


def _job(workload: Workload, content: str, options: PodOptions, run: RunOptions) -> list[Manifest]:
    scheduled = run.schedule is not None
    name = dns_name(workload.name, SCHEDULED_NAME_LIMIT if scheduled else NAME_LIMIT)
    cluster = _cluster("train", name, workload, options, run)
    pods.mount_config(cluster["headGroupSpec"]["template"], f"{name}-job", JOB_FOLDER)
    # The same job has finished before on a schedule, so it starts over.
    command = f"hourglass {workload.kind}{' --fresh' if scheduled else ''}"
    job = {
        "entrypoint": f"{command} {JOB_FOLDER}/{name}.yaml",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_S if run.ttl_s is None else run.ttl_s,
        "activeDeadlineSeconds": run.deadline_s or DEADLINE_S,
        # On a new cluster; a retry resumes from the last checkpoint, except with --fresh.
        "backoffLimit": 2,
        "submitterPodTemplate": pods.submitter(name, options),
        "rayClusterSpec": cluster,
    }
    kind, spec = "RayJob", job
    if scheduled:
        time_zone = run.time_zone or "Etc/UTC"
        kind = "RayCronJob"
        spec = {"schedule": run.schedule, "timeZone": time_zone, "jobTemplate": job}
    # Runs are named after their file, and checkpoints after their run.
    data = {f"{name}.yaml": content}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _meta(f"{name}-job", run),
            "data": data,
        },
        _budget("train", name, "head", run),
        {
            "apiVersion": "ray.io/v1",
            "kind": kind,
            "metadata": _meta(name, run) | _queue_labels(run),
            "spec": spec,
        },
    ]


def _service(
    workload: Workload, content: str, options: PodOptions, run: RunOptions
) -> list[Manifest]:
    name = dns_name(workload.name)
    upgrade: Manifest = {"type": "NewCluster"}
    if run.gateway_class:
        upgrade = {
            "type": "NewClusterWithIncrementalUpgrade",
            "clusterUpgradeOptions": {
                "gatewayClassName": run.gateway_class,
                "stepSizePercent": 10,
                "intervalSeconds": 30,
                # Capacity beyond that of the old cluster while both exist.
                "maxSurgePercent": 20,
            },
        }
    spec = {
        "excludeHeadPodFromServeSvc": True,
        "upgradeStrategy": upgrade,
        "serveConfigV2": content,
        "rayClusterConfig": _cluster("serve", name, workload, options, run),
    }
    return [
        _budget("serve", name, "head", run),
        _budget("serve", name, "worker", run),
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": _meta(name, run) | _queue_labels(run),
            "spec": spec,
        },
    ]


def _cluster(
    component: str, name: str, workload: Workload, options: PodOptions, run: RunOptions
) -> Manifest:
    # In an incremental upgrade the new cluster grows as the old one shrinks, so it starts small.
    least = 1 if run.gateway_class else workload.workers
    return pods.ray_cluster(
        component,
        name,
        options,
        workers=least,
        most_workers=workload.most_workers,
        cpus=workload.cpus,
        gpus=workload.gpus,
        autoscales=_autoscales(workload, run),
    )


def _budget(component: str, name: str, node_type: str, run: RunOptions) -> Manifest:
    """At least one pod stays: a head is never evicted, and one replica of endpoints remains."""
    labels = {
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": name,
        "ray.io/node-type": node_type,
    }
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(f"{name}-{node_type}", run),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": labels}},
    }


def _meta(name: str, run: RunOptions) -> Manifest:
    return {"name": name} | ({"namespace": run.namespace} if run.namespace else {})


def _queue_labels(run: RunOptions) -> Manifest:
    if not run.queue:
        return {}
    labels = {"kueue.x-k8s.io/queue-name": run.queue}
    if run.priority_class:
        labels["kueue.x-k8s.io/priority-class"] = run.priority_class
    return {"labels": labels}


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and multi-line strings as blocks, for readability."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)
