"""A job file as Kubernetes objects, which `hourglass render` prints.

The functions are pure and contact no cluster. The objects need a namespace where `k8s/base` is
applied: its ConfigMap and S3 Secret are their environment, its NetworkPolicies admit pods labelled
`train` and `submitter`, and the pods have the same restrictions.
"""

import hashlib
import re
from typing import Any

import yaml

from hourglass.errors import SpecError, nearest

Manifest = dict[str, Any]

RAY_VERSION = "2.60.0"
GPU = "nvidia.com/gpu"
KINDS = ("train", "score")
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
    """The ConfigMap with the job file, the head's disruption budget, and the RayJob that runs it.

    Raises: SpecError for a kind of job that cannot be rendered, or an unsuitable name or size.
    """
    if len(job_yaml.encode()) > JOB_BYTES_LIMIT:
        raise SpecError(
            f"job file: found {len(job_yaml.encode())} bytes, allowed are {JOB_BYTES_LIMIT} because "
            "of the size of a ConfigMap; replace a long list of shards in data.uri by a folder or "
            "a glob"
        )
    kind = _kind(job_yaml)
    name = dns_name(name)
    head = _ray_pod(name, "ray-head", image, _resources(cpus=1, memory_gib=4))
    _make_head(head, name)
    # One CPU more than training needs: without it, Ray Data has none to read with and waits forever.
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
            # Only the driver runs here, so that a worker out of memory cannot bring the cluster down.
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
        "entrypoint": f"hourglass {kind} {JOB_FOLDER}/{name}.yaml",
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        # A retry resumes from the last checkpoint, on a new cluster.
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
            # Runs are named after their file, and checkpoints after their run.
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
    """`text` as a Kubernetes name; a long one is truncated and made unique by a hash.

    Raises: SpecError if no letter or digit remains.
    Source: RFC 1123 section 2.1 and RFC 1035 section 2.3.1 (starts with a letter).
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name:
        raise SpecError(f"name: found {text!r}, allowed is a name with a letter or digit")
    if not name[0].isalpha():
        name = f"job-{name}"
    if len(name) > NAME_LIMIT:
        name = (
            f"{name[: NAME_LIMIT - 7].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
        )
    return name


def _kind(job_yaml: str) -> str:
    job = yaml.safe_load(job_yaml)
    kind = job.get("kind") if isinstance(job, dict) else None
    if kind in KINDS:
        return str(kind)
    found = f"found {kind}" if kind else "missing"
    hint = nearest(str(kind), KINDS) if kind else ""
    raise SpecError(f"kind: {found}, allowed {', '.join(KINDS)}{hint}")


def _pod(
    component: str, instance: str, container: str, image: str, resources: Manifest
) -> Manifest:
    """A pod template for the `restricted` Pod Security Standard, writable only in /tmp."""
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
    """A pod of the training cluster, with the platform's environment and any requested GPUs."""
    pod = _pod("train", instance, container, image, resources)
    pod["spec"]["containers"][0]["envFrom"] = [
        {"configMapRef": {"name": "hourglass"}},
        {"secretRef": {"name": "hourglass-s3"}},
    ]
    if GPU in resources["limits"]:
        pod["spec"]["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _make_head(pod: Manifest, name: str) -> None:
    """Name the head's ports and mount the job file, since Ray runs entrypoints on the head."""
    container = pod["spec"]["containers"][0]
    # The head's Service exposes only named ports, so no Ray Client.
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
    ]
    mount = {"name": "job", "mountPath": JOB_FOLDER, "readOnly": True}
    container["volumeMounts"].append(mount)
    pod["spec"]["volumes"].append({"name": "job", "configMap": {"name": f"{name}-job"}})


def _resources(cpus: int, memory_gib: int, gpus: int = 0) -> Manifest:
    """Resources with requests equal to limits, since Ray schedules by the limits."""
    amount: Manifest = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}
    if gpus:
        amount[GPU] = gpus
    return {"requests": amount, "limits": amount}


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and multi-line strings as blocks, for readability."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)
