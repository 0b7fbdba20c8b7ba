"""A job file as Kubernetes objects: what `hourglass render` prints.

Pure text in, manifests out: nothing here reaches a cluster. The objects join a namespace where
`k8s/base` is applied: its ConfigMap and S3 Secret are their environment, its NetworkPolicies let
pods labelled `train` and `submitter` speak, and the pods are as restricted as its own.
"""

import hashlib
import re
from typing import Any

import yaml

from hourglass.errors import SpecError, nearest

Manifest = dict[str, Any]

RAY_VERSION = "2.60.0"
GPU = "nvidia.com/gpu"
VERBS = ("train", "score")
# KubeRay adds a suffix for the job's cluster and its services, so it refuses longer names.
NAME_LIMIT = 47
JOB_FOLDER = "/etc/hourglass"
JOB_BYTES_LIMIT = 900_000  # a ConfigMap holds 1 MiB, keys and metadata included


def manifests(
    job_yaml: str,
    name: str,
    *,
    image: str,
    workers: int,
    cpus_per_worker: int,
    gpus_per_worker: int = 0,
    memory_gib_per_worker: int = 8,
    namespace: str | None = None,
) -> list[Manifest]:
    """The ConfigMap with the job file, the head's disruption budget and the RayJob that runs it.

    Raises: SpecError when the job's kind has no command, or its name or size does not fit.
    """
    if len(job_yaml.encode()) > JOB_BYTES_LIMIT:
        raise SpecError(
            f"job file: {len(job_yaml.encode())} bytes, at most {JOB_BYTES_LIMIT} fit in a "
            "ConfigMap; put long lists of shards in a manifest file and point data.uri at it"
        )
    verb = _verb(job_yaml)
    name = dns_name(name)
    head = _ray_pod(name, "ray-head", image, _resources(cpus=1, memory_gib=4))
    _make_head(head, name)
    # One CPU more than training takes: without it Ray Data has nowhere to read and waits for ever.
    worker = _ray_pod(
        name,
        "ray-worker",
        image,
        _resources(cpus_per_worker + 1, memory_gib_per_worker, gpus_per_worker),
    )
    submitter = _pod("submitter", name, "ray-job-submitter", image, _resources(1, 1))
    submitter["spec"]["restartPolicy"] = "Never"

    cluster = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            # Only the driver runs here: a worker out of memory never takes the cluster with it.
            "rayStartParams": {"num-cpus": "0"},
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": workers,
                "minReplicas": workers,
                "maxReplicas": workers,
                "rayStartParams": {},
                "template": worker,
            }
        ],
    }
    job = {
        "entrypoint": f"hourglass {verb} {JOB_FOLDER}/{name}.yaml",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        # The same command again resumes from the last checkpoint, on a new cluster.
        "backoffLimit": 2,
        "submitterPodTemplate": submitter,
        "rayClusterSpec": cluster,
    }
    head_labels = head["metadata"]["labels"] | {"ray.io/node-type": "head"}
    budget = {"minAvailable": 1, "selector": {"matchLabels": head_labels}}

    meta = {"name": name} | ({"namespace": namespace} if namespace else {})
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta | {"name": f"{name}-job"},
            # A run is named after its file, and its checkpoints after the run.
            "data": {f"{name}.yaml": job_yaml},
        },
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": meta | {"name": f"{name}-head"},
            "spec": budget,
        },
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": meta, "spec": job},
    ]


def to_yaml(objects: list[Manifest]) -> str:
    """The objects as one YAML stream, for `kubectl apply -f -`."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=100)


def dns_name(text: str) -> str:
    """`text` as a name Kubernetes accepts, cut with a hash of the whole so that it stays unique.

    Raises: SpecError when no letter or digit is left.
    Source: RFC 1123 section 2.1 and RFC 1035 section 2.3.1 (starts with a letter).
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name:
        raise SpecError(f"name: {text!r} has no letter or digit to make a Kubernetes name of")
    if not name[0].isalpha():
        name = f"job-{name}"
    if len(name) > NAME_LIMIT:
        name = (
            f"{name[: NAME_LIMIT - 7].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
        )
    return name


def _verb(job_yaml: str) -> str:
    job = yaml.safe_load(job_yaml)
    kind = job.get("kind") if isinstance(job, dict) else None
    if kind in VERBS:
        return str(kind)
    found = f"found {kind}" if kind else "missing"
    hint = nearest(str(kind), VERBS) if kind else ""
    raise SpecError(f"kind: {found}, allowed {', '.join(VERBS)}{hint}")


def _pod(
    component: str, instance: str, container: str, image: str, resources: Manifest
) -> Manifest:
    """A pod template that the `restricted` Pod Security Standard admits, writable in /tmp only."""
    return {
        "metadata": {
            "labels": {
                "app.kubernetes.io/component": component,
                "app.kubernetes.io/instance": instance,
            }
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": container,
                    "image": image,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "resources": resources,
                    "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "20Gi"}}],
        },
    }


def _ray_pod(instance: str, container: str, image: str, resources: Manifest) -> Manifest:
    """A pod of the training cluster, with the platform's environment and, if asked for, GPUs."""
    pod = _pod("train", instance, container, image, resources)
    pod["spec"]["containers"][0]["envFrom"] = [
        {"configMapRef": {"name": "hourglass"}},
        {"secretRef": {"name": "hourglass-s3"}},
    ]
    if GPU in resources["limits"]:
        pod["spec"]["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _make_head(pod: Manifest, name: str) -> None:
    """Name the head's ports and mount the job file: Ray starts entrypoints on the head."""
    container = pod["spec"]["containers"][0]
    # Named ports are all the head's Service offers: no Ray Client.
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
    ]
    mount = {"name": "job", "mountPath": JOB_FOLDER, "readOnly": True}
    container["volumeMounts"].append(mount)
    pod["spec"]["volumes"].append({"name": "job", "configMap": {"name": f"{name}-job"}})


def _resources(cpus: int, memory_gib: int, gpus: int = 0) -> Manifest:
    """Requests equal limits: Ray plans with the limits, so less would promise what is not there."""
    amount: Manifest = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}
    if gpus:
        amount[GPU] = gpus
    return {"requests": amount, "limits": amount}


class _Dumper(yaml.SafeDumper):
    """No anchors, and texts of several lines as blocks: made to be read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)
