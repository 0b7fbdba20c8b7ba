"""Pod templates of Ray clusters and submitters, as `k8s/base` expects them.

Every pod meets the `restricted` Pod Security Standard and is writable only in /tmp and its volumes.
"""

from dataclasses import dataclass
from typing import Any

from hourglass.cluster.workload import SERVE_PORT, Volume

Manifest = dict[str, Any]

RAY_VERSION = "2.60.0"
GPU = "nvidia.com/gpu"
HOME = Volume("hourglass-home", "/var/lib/hourglass")
"""HOURGLASS_HOME of `k8s/base`: what MLflow did not receive yet must outlive the pod."""
CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
API_TOKEN: Manifest = {
    "name": "api-token",
    "projected": {
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
            {
                "configMap": {
                    "name": "kube-root-ca.crt",
                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                }
            },
            {
                "downwardAPI": {
                    "items": [
                        {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
                    ]
                }
            },
        ]
    },
}


@dataclass(frozen=True)
class PodOptions:
    """What all pods of a workload have in common."""

    image: str
    memory_gib: int = 8
    """Of each worker."""
    ephemeral_storage_gib: int = 20
    """Of each worker and of the head: /tmp, where Ray spills, and logs."""
    node_selector: tuple[tuple[str, str], ...] = ()
    """Of the workers, as the tolerations; heads and submitters need no special node."""
    tolerations: tuple[Manifest, ...] = ()
    pull_secrets: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    topology_key: str | None = None
    """Node label over which workers are spread; endpoints are also spread over nodes."""


def ray_cluster(
    component: str,
    instance: str,
    options: PodOptions,
    *,
    workers: int,
    most_workers: int,
    cpus: int,
    gpus: int = 0,
    autoscales: bool = False,
) -> Manifest:
    """A RayCluster's spec: a head that only drivers use, and one group of workers."""
    storage = options.ephemeral_storage_gib
    head = _ray_pod(
        component, instance, "ray-head", options, _resources("1", "4Gi", f"{storage}Gi")
    )
    # The head's Service exposes only named ports, so no Ray Client.
    ports = [("gcs-server", 6379), ("dashboard", 8265)]
    if component == "serve":
        ports.append(("serve", SERVE_PORT))
    container = head["spec"]["containers"][0]
    container["ports"] = [{"name": name, "containerPort": port} for name, port in ports]
    resources = _resources(str(cpus), f"{options.memory_gib}Gi", f"{storage}Gi", gpus)
    worker = _ray_pod(component, instance, "ray-worker", options, resources)
    _place(worker["spec"], component, instance, options, gpus)
    cluster: Manifest = {"rayVersion": RAY_VERSION, "authOptions": {"mode": "token"}}
    if autoscales:
        cluster |= _autoscaler(head["spec"])
    return cluster | {
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
                "maxReplicas": most_workers,
                "rayStartParams": {},
                "template": worker,
            }
        ],
    }


def submitter(instance: str, options: PodOptions) -> Manifest:
    """The pod that submits the entrypoint of a RayJob and follows its log."""
    pod = _pod(
        "submitter", instance, "ray-job-submitter", options, _resources("1", "1Gi", "1Gi"), "1Gi"
    )
    pod["spec"]["restartPolicy"] = "Never"
    return pod


def mount_config(head: Manifest, name: str, folder: str) -> None:
    """Mount a ConfigMap in a head's pod template, where entrypoints run."""
    mount = {"name": "job", "mountPath": folder, "readOnly": True}
    head["spec"]["containers"][0]["volumeMounts"].append(mount)
    head["spec"]["volumes"].append({"name": "job", "configMap": {"name": name}})


def _pod(
    component: str,
    instance: str,
    container: str,
    options: PodOptions,
    resources: Manifest,
    scratch: str,
) -> Manifest:
    spec: Manifest = {
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
                "image": options.image,
                "securityContext": CONTAINER_SECURITY,
                "resources": resources,
                "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": scratch}}],
    }
    if options.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in options.pull_secrets]
    labels = {
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/instance": instance,
    }
    return {"metadata": {"labels": labels}, "spec": spec}


def _ray_pod(
    component: str, instance: str, container: str, options: PodOptions, resources: Manifest
) -> Manifest:
    """A pod of a Ray cluster: the platform's environment, S3 keys or the endpoints' token, volumes."""
    storage = f"{options.ephemeral_storage_gib}Gi"
    pod = _pod(component, instance, container, options, resources, storage)
    main = pod["spec"]["containers"][0]
    main["envFrom"] = [{"configMapRef": {"name": "hourglass"}}]
    if component == "serve":  # endpoints fetch models through MLflow, so they need no S3 keys
        token = {"secretKeyRef": {"name": "hourglass-serve", "key": "token"}}
        main["env"] = [
            {"name": "HOURGLASS_SERVE_TOKEN", "valueFrom": token},
            {"name": "HOURGLASS_HOME", "value": "/tmp/hourglass"},
        ]
        volumes = options.volumes
    else:
        pod["spec"]["serviceAccountName"] = "hourglass-data"  # whose role can replace the keys
        main["envFrom"].append({"secretRef": {"name": "hourglass-s3", "optional": True}})
        volumes = (HOME, *options.volumes)
    for number, volume in enumerate(volumes):
        name = "home" if volume is HOME else f"claim-{number}"
        main["volumeMounts"].append({"name": name, "mountPath": volume.path})
        claim = {"claimName": volume.claim}
        pod["spec"]["volumes"].append({"name": name, "persistentVolumeClaim": claim})
    return pod


def _place(spec: Manifest, component: str, instance: str, options: PodOptions, gpus: int) -> None:
    """Choose nodes for workers."""
    tolerations = list(options.tolerations)
    if gpus:
        tolerations.append({"key": GPU, "operator": "Exists", "effect": "NoSchedule"})
    if tolerations:
        spec["tolerations"] = tolerations
    if options.node_selector:
        spec["nodeSelector"] = dict(options.node_selector)
    # Endpoints must survive a node; a job had rather start than be spread.
    spread = {options.topology_key: "ScheduleAnyway"} if options.topology_key else {}
    if component == "serve":
        spread["kubernetes.io/hostname"] = "DoNotSchedule"
    labels = {"app.kubernetes.io/instance": instance, "ray.io/node-type": "worker"}
    constraints = [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": otherwise,
            "labelSelector": {"matchLabels": labels},
            # In an upgrade, the pods of the other cluster do not count.
            "matchLabelKeys": ["ray.io/cluster"],
        }
        for key, otherwise in spread.items()
    ]
    if constraints:
        spec["topologySpreadConstraints"] = constraints


def _autoscaler(head: Manifest) -> Manifest:
    """Fields for the autoscaler, and an API token in the head's pod for its container alone."""
    mounts = [("scratch", "/tmp"), ("session", "/tmp/ray")]
    head["containers"][0]["volumeMounts"].append({"name": "session", "mountPath": "/tmp/ray"})
    limit = head["volumes"][0]["emptyDir"]["sizeLimit"]
    head["volumes"] += [{"name": "session", "emptyDir": {"sizeLimit": limit}}, API_TOKEN]
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    token = {"name": API_TOKEN["name"], "mountPath": path, "readOnly": True}
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 600,
            "securityContext": CONTAINER_SECURITY,
            "resources": _resources("500m", "512Mi", "1Gi"),
            "volumeMounts": [
                *({"name": name, "mountPath": place} for name, place in mounts),
                token,
            ],
        },
    }


def _resources(cpus: str, memory: str, storage: str, gpus: int = 0) -> Manifest:
    """Resources with requests equal to limits, since Ray schedules by the limits."""
    amount: Manifest = {"cpu": cpus, "memory": memory, "ephemeral-storage": storage}
    if gpus:
        amount[GPU] = gpus
    return {"requests": amount, "limits": amount}
