"""Mistakes to plant in valid objects, each with the rule that must catch it."""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from k8s_objects import Object


def find(objects: list[Object], kind: str, name: str = "") -> Object:
    return next(o for o in objects if o["kind"] == kind and name in o["metadata"]["name"])


def _pod(objects: list[Object], kind: str) -> Object:
    """The pod spec of a server, or of a Ray kind's head."""
    spec = find(objects, kind)["spec"]
    spec = spec.get("rayClusterSpec", spec.get("rayClusterConfig", spec))
    template: Object = spec["headGroupSpec"]["template"] if "Ray" in kind else spec["template"]
    pod: Object = template["spec"]
    return pod


def _workers(objects: list[Object], kind: str) -> Object:
    """The pod template of a Ray kind's first workers."""
    spec = find(objects, kind)["spec"]
    spec = spec.get("rayClusterSpec", spec.get("rayClusterConfig", spec))
    template: Object = spec["workerGroupSpecs"][0]["template"]
    return template


def _container(objects: list[Object], kind: str) -> Object:
    container: Object = _pod(objects, kind)["containers"][0]
    return container


def _add_peer(objects: list[Object]) -> None:
    rule = find(objects, "NetworkPolicy", "ray-train")["spec"]["ingress"][0]
    rule["from"].append({"namespaceSelector": {}})


def _reconfigure_endpoints(objects: list[Object], old: str, new: str) -> None:
    spec = find(objects, "RayService")["spec"]
    assert old in spec["serveConfigV2"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)


def _secret() -> Object:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {}}


def _ingress() -> Object:
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}}


# name: (the rule that must speak, or "schema"; the mistake)
MISTAKES: dict[str, tuple[str, Callable[[list[Object]], object]]] = {
    "root allowed": (
        "restricted_pods",
        lambda o: _pod(o, "RayCluster")["securityContext"].pop("runAsNonRoot"),
    ),
    "user 0": (
        "restricted_pods",
        lambda o: _pod(o, "Deployment")["securityContext"].update(runAsUser=0),
    ),
    "no seccomp": (
        "restricted_pods",
        lambda o: _pod(o, "RayJob")["securityContext"].pop("seccompProfile"),
    ),
    "privilege escalation": (
        "restricted_pods",
        lambda o: _container(o, "RayService")["securityContext"].pop("allowPrivilegeEscalation"),
    ),
    "a capability added": (
        "restricted_pods",
        lambda o: _container(o, "RayJob")["securityContext"]["capabilities"].update(add=["CHOWN"]),
    ),
    "writable root": (
        "restricted_pods",
        lambda o: _container(o, "StatefulSet")["securityContext"].update(
            readOnlyRootFilesystem=False
        ),
    ),
    "unsized scratch": (
        "restricted_pods",
        lambda o: _pod(o, "RayCluster")["volumes"][0].update(emptyDir={}),
    ),
    "host path": (
        "restricted_pods",
        lambda o: _pod(o, "Deployment")["volumes"].append(
            {"name": "host", "hostPath": {"path": "/"}}
        ),
    ),
    "host network": (
        "restricted_pods",
        lambda o: _pod(o, "RayService").update(hostNetwork=True),
    ),
    "open autoscaler": (
        "restricted_pods",
        lambda o: find(o, "RayCluster")["spec"].update(enableInTreeAutoscaling=True),
    ),
    "submitter as root": (
        "restricted_pods",
        lambda o: find(o, "RayJob")["spec"]["submitterPodTemplate"]["spec"].pop("securityContext"),
    ),
    "no memory limit": (
        "limits_are_set",
        lambda o: _container(o, "RayJob")["resources"]["limits"].pop("memory"),
    ),
    "no resources": ("limits_are_set", lambda o: _container(o, "Deployment").pop("resources")),
    "latest": (
        "images_are_pinned",
        lambda o: _container(o, "RayCluster").update(image="hourglass:latest"),
    ),
    "no tag": (
        "images_are_pinned",
        lambda o: _container(o, "StatefulSet").update(image="registry.example:5000/postgres"),
    ),
    "API token mounted": (
        "no_api_token",
        lambda o: _pod(o, "RayService").pop("automountServiceAccountToken"),
    ),
    "service links": ("no_api_token", lambda o: _pod(o, "Deployment").pop("enableServiceLinks")),
    "API token for user code": (
        "no_api_token",
        lambda o: (
            _pod(o, "RayJob")["volumes"].append(
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
            ),
            _container(o, "RayJob")["volumeMounts"].append({"name": "t", "mountPath": "/t"}),
        ),
    ),
    "Ray open": ("token_auth", lambda o: find(o, "RayCluster")["spec"].pop("authOptions")),
    "Ray auth switched off": (
        "token_auth",
        lambda o: find(o, "ConfigMap")["data"].update(RAY_AUTH_MODE="disabled"),
    ),
    "old Ray": (
        "token_auth",
        lambda o: find(o, "RayService")["spec"]["rayClusterConfig"].update(rayVersion="2.51.0"),
    ),
    "Secret shipped": ("no_secret_values", lambda o: o.append(_secret())),
    "key in the ConfigMap": (
        "no_secret_values",
        lambda o: find(o, "ConfigMap")["data"].update(AWS_SECRET_ACCESS_KEY="abc"),
    ),
    "password in a URL": (
        "no_secret_values",
        lambda o: find(o, "ConfigMap")["data"].update(MLFLOW_TRACKING_URI="http://me:pw@mlflow"),
    ),
    "token written down": (
        "no_secret_values",
        lambda o: _container(o, "RayService")["env"].append(
            {"name": "HOURGLASS_SERVE_TOKEN", "value": "abc"}
        ),
    ),
    "Ingress": ("nothing_is_published", lambda o: o.append(_ingress())),
    "dashboard on a LoadBalancer": (
        "nothing_is_published",
        lambda o: find(o, "RayCluster")["spec"]["headGroupSpec"].update(serviceType="LoadBalancer"),
    ),
    "MLflow on a NodePort": (
        "nothing_is_published",
        lambda o: find(o, "Service", "mlflow")["spec"].update(type="NodePort"),
    ),
    "dashboard by enableIngress": (
        "nothing_is_published",
        lambda o: find(o, "RayCluster")["spec"]["headGroupSpec"].update(enableIngress=True),
    ),
    "no default deny": (
        "network_is_closed",
        lambda o: o.remove(find(o, "NetworkPolicy", "default-deny")),
    ),
    "default deny one way": (
        "network_is_closed",
        lambda o: find(o, "NetworkPolicy", "default-deny")["spec"].update(policyTypes=["Ingress"]),
    ),
    "all ports": (
        "network_is_closed",
        lambda o: find(o, "NetworkPolicy", "postgres")["spec"]["ingress"][0].pop("ports"),
    ),
    "every namespace reaches the dashboard": ("network_is_closed", _add_peer),
    "everybody reaches MLflow": (
        "network_is_closed",
        lambda o: find(o, "NetworkPolicy", "mlflow")["spec"]["ingress"][0].pop("from"),
    ),
    "pod without a policy": (
        "network_is_closed",
        lambda o: find(o, "StatefulSet")["spec"]["template"]["metadata"]["labels"].clear(),
    ),
    "no budget": (
        "disruption_is_bounded",
        lambda o: o.remove(find(o, "PodDisruptionBudget", "big-job-head")),
    ),
    "two budgets for one pod": (
        "disruption_is_bounded",
        lambda o: find(o, "PodDisruptionBudget", "mlflow")["spec"].update(selector={}),
    ),
    "a budget Ray pods do not support": (
        "disruption_is_bounded",
        lambda o: find(o, "PodDisruptionBudget", "endpoints")["spec"].update(minAvailable="50%"),
    ),
    "MLflow answers any host": (
        "mlflow_is_guarded",
        lambda o: _container(o, "Deployment")["command"].append("--allowed-hosts=*"),
    ),
    "MLflow refuses its Service": (
        "mlflow_is_guarded",
        lambda o: find(o, "Service", "mlflow")["metadata"].update(name="tracking"),
    ),
    "pickle allowed": (
        "mlflow_is_guarded",
        lambda o: find(o, "ConfigMap")["data"].update(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="true"),
    ),
    "ConfigMap missing": ("references_resolve", lambda o: o.remove(find(o, "ConfigMap"))),
    "claim missing": (
        "references_resolve",
        lambda o: o.remove(find(o, "PersistentVolumeClaim")),
    ),
    "volume missing": ("references_resolve", lambda o: _pod(o, "RayCluster")["volumes"].clear()),
    "other code served": (
        "endpoints_are_ours",
        lambda o: _reconfigure_endpoints(o, "hourglass.serving.app:build", "evil:build"),
    ),
    "an argument our builder does not know": (
        "endpoints_are_ours",
        lambda o: _reconfigure_endpoints(o, "ingress_replicas", "ingress_copies"),
    ),
    "a proxy without its middleware": (
        "endpoints_are_ours",
        lambda o: _reconfigure_endpoints(
            o,
            "controller_options:\n  runtime_env:\n    env_vars: "
            '{RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: "hourglass.serving.proxy:middlewares"}\n',
            "",
        ),
    ),
    "endpoints without a token": (
        "endpoints_are_ours",
        lambda o: _container(o, "RayService").pop("env"),
    ),
    "DNS on the node": (
        "dns_is_reachable",
        lambda o: find(o, "NetworkPolicy", "dns")["spec"]["egress"][0]["to"].pop(1),
    ),
    "DNS of OpenShift": (
        "dns_is_reachable",
        lambda o: find(o, "NetworkPolicy", "dns")["spec"]["egress"].pop(1),
    ),
    "DNS by UDP only": (
        "dns_is_reachable",
        lambda o: find(o, "NetworkPolicy", "dns")["spec"]["egress"][0]["ports"].pop(1),
    ),
    "replicas on one node": (
        "endpoints_are_spread",
        lambda o: _workers(o, "RayService")["spec"].pop("topologySpreadConstraints"),
    ),
    "a spread that counts other pods": (
        "endpoints_are_spread",
        lambda o: _workers(o, "RayService")["metadata"]["labels"].update(
            {"app.kubernetes.io/instance": "other"}
        ),
    ),
    "autoscaler v1": (
        "autoscalers_are_v2",
        lambda o: find(o, "RayCluster")["spec"].update(enableInTreeAutoscaling=True),
    ),
    "no quota": ("quota_is_enough", lambda o: o.remove(find(o, "ResourceQuota"))),
    "more workers than the quota": (
        "quota_is_enough",
        lambda o: find(o, "RayCluster")["spec"]["workerGroupSpecs"][0].update(maxReplicas=20),
    ),
    "a backup as root": (
        "restricted_pods",
        lambda o: find(o, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
            "initContainers"
        ][0]["securityContext"].update(runAsUser=0),
    ),
    "keys for endpoints": (
        "only_data_pods_reach_the_bucket",
        lambda o: _container(o, "RayService")["envFrom"].append(
            {"secretRef": {"name": "hourglass-s3", "optional": True}}
        ),
    ),
    "a role for endpoints": (
        "only_data_pods_reach_the_bucket",
        lambda o: _pod(o, "RayService").update(serviceAccountName="hourglass-data"),
    ),
    "keys that a role cannot replace": (
        "only_data_pods_reach_the_bucket",
        lambda o: _container(o, "RayCluster")["envFrom"][1]["secretRef"].pop("optional"),
    ),
    "keys without the account": (
        "only_data_pods_reach_the_bucket",
        lambda o: _pod(o, "Deployment").pop("serviceAccountName"),
    ),
    "an outbox that is lost with its pod": (
        "home_is_shared",
        lambda o: _container(o, "RayJob")["volumeMounts"].pop(1),
    ),
    "another home": (
        "home_is_shared",
        lambda o: find(o, "ConfigMap")["data"].update(HOURGLASS_HOME="/tmp/hourglass"),
    ),
    "a schema that nobody upgrades": (
        "database_is_kept",
        lambda o: _pod(o, "Deployment").pop("initContainers"),
    ),
    "a schema of another version": (
        "database_is_kept",
        lambda o: _pod(o, "Deployment")["initContainers"][0].update(image="hourglass:0.0.9"),
    ),
    "no backup": ("database_is_kept", lambda o: o.remove(find(o, "CronJob"))),
    "backups at the same time": (
        "database_is_kept",
        lambda o: find(o, "CronJob")["spec"].pop("concurrencyPolicy"),
    ),
    "no such queue": (
        "queues_cover_jobs",
        lambda o: find(o, "LocalQueue")["metadata"].update(name="other"),
    ),
    "a resource without quota": (
        "queues_cover_jobs",
        lambda o: find(o, "ClusterQueue")["spec"]["resourceGroups"][0]["coveredResources"].remove(
            "ephemeral-storage"
        ),
    ),
    "an alert on a metric that is not there": (
        "metrics_exist",
        lambda o: find(o, "PrometheusRule")["spec"]["groups"][0]["rules"][0].update(
            expr="ray_hourglass_train_restart > 2"
        ),
    ),
    "a panel of a metric that is not there": (
        "metrics_exist",
        lambda o: find(o, "ConfigMap", "dashboard")["data"].update(
            {"dashboard.json": '{"panels": [{"targets": [{"expr": "ray_serve_latency"}]}]}'}
        ),
    ),
    "metrics behind a closed port": (
        "metrics_are_scraped",
        lambda o: o.remove(find(o, "NetworkPolicy", "metrics")),
    ),
    "a monitor of nothing": (
        "metrics_are_scraped",
        lambda o: find(o, "PodMonitor")["spec"]["selector"].update(matchLabels={"app": "ray"}),
    ),
    "misspelt in Kueue": (
        "schema of custom kinds",
        lambda o: find(o, "ClusterQueue")["spec"].update(cohort="all"),
    ),
    "wrong type in an alert": (
        "schema of custom kinds",
        lambda o: find(o, "PrometheusRule")["spec"]["groups"][0].update(rules={}),
    ),
    "misspelt field": ("schema", lambda o: find(o, "Deployment")["spec"].update(replica=2)),
    "wrong type": ("schema", lambda o: find(o, "StatefulSet")["spec"].update(replicas="one")),
    "misspelt in Ray": (
        "schema of custom kinds",
        lambda o: find(o, "RayCluster")["spec"].update(headGroup={}),
    ),
    "wrong type in Ray": (
        "schema of custom kinds",
        lambda o: find(o, "RayJob")["spec"].update(backoffLimit="2"),
    ),
}
