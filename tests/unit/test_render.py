"""Job and serve files become Kubernetes objects: names, commands, sizes, placement and refusals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from hourglass.cli import app
from hourglass.cluster import workload
from hourglass.cluster.pods import PodOptions
from hourglass.cluster.render import (
    JOB_BYTES_LIMIT,
    NAME_LIMIT,
    SCHEDULED_NAME_LIMIT,
    RunOptions,
    dns_name,
    manifests,
    to_yaml,
)
from hourglass.cluster.workload import Sizes, Volume, Workload
from hourglass.config import files, serve
from hourglass.errors import SpecError

TRAIN = {
    "kind": "train",
    "name": "mnist",
    "data": {"uri": "s3://bucket/rows", "features": {"vector": "image"}},
    "model": {"network": {"kind": "dense", "widths": [4]}},
}
SCORE = {
    "kind": "score",
    "name": "nightly",
    "model": "models:/mnist@champion",
    "uri": "s3://bucket/rows",
    "output": "s3://bucket/scores",
}
TUNE = {
    "kind": "tune",
    "name": "sweep",
    "base": TRAIN,
    "space": {"train.seed": {"grid": [1, 2]}},
}
SERVE = {
    "applications": [
        {
            "import_path": "hourglass.serving.app:build",
            "args": {"models": [{"name": "mnist", "uri": "models:/mnist@champion"}]},
        }
    ]
}


def job(tree: dict[str, Any], volumes: Sequence[Volume] = (), **sizes: int) -> Workload:
    return workload.of_job(files.parse(tree), Sizes(**sizes), volumes)


def endpoints(volumes: Sequence[Volume] = (), sizes: Sizes | None = None, **args: Any) -> Workload:
    tree = yaml.safe_load(yaml.safe_dump(SERVE))
    tree["applications"][0]["args"] |= args
    return workload.of_endpoints(
        serve.SERVE.validate_python(tree), "live", sizes or Sizes(), volumes
    )


def scaled(**scale: Any) -> dict[str, Any]:
    return TRAIN | {"scale": scale}


def rendered(load: Workload | None = None, pod: Any = None, **run: Any) -> list[dict[str, Any]]:
    pod = {"image": "hourglass:0.1.0"} | (pod or {})
    return manifests(load or job(TRAIN), PodOptions(**pod), RunOptions(**run))


def worker_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The pod spec of the workers."""
    spec = objects[-1]["spec"]
    cluster = spec.get("rayClusterConfig") or spec.get("jobTemplate", spec)["rayClusterSpec"]
    pod: dict[str, Any] = cluster["workerGroupSpecs"][0]["template"]["spec"]
    return pod


def refusal(make: Any) -> list[str]:
    with pytest.raises(SpecError) as refused:
        make()
    return str(refused.value).splitlines()


def test_the_head_reads_the_resolved_job_file() -> None:
    config, _, ray_job = rendered()
    assert files.parse(yaml.safe_load(config["data"]["mnist.yaml"])) == files.parse(
        scaled(accelerator="cpu")
    )
    assert ray_job["spec"]["entrypoint"] == "hourglass train /etc/hourglass/mnist.yaml"
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "job", "configMap": {"name": config["metadata"]["name"]}} in head["volumes"]
    mounts = {m["name"]: m["mountPath"] for m in head["containers"][0]["volumeMounts"]}
    assert mounts == {"scratch": "/tmp", "home": "/var/lib/hourglass", "job": "/etc/hourglass"}


@pytest.mark.parametrize("tree", [TRAIN, SCORE, TUNE], ids=lambda tree: tree["kind"])
def test_the_kind_of_a_job_is_the_command(tree: dict[str, Any]) -> None:
    config, *_, ray_job = rendered(job(tree))
    assert files.parse(yaml.safe_load(config["data"][f"{tree['name']}.yaml"])).kind == tree["kind"]
    assert ray_job["kind"] == "RayJob"
    command = f"hourglass {tree['kind']} /etc/hourglass/{tree['name']}.yaml"
    assert ray_job["spec"]["entrypoint"] == command


def test_workers_ask_for_one_cpu_more_than_training_takes() -> None:
    load = job(scaled(workers=4, cpus_per_worker=3), gpus=1)
    objects = rendered(load, {"memory_gib": 16, "ephemeral_storage_gib": 50})
    (group,) = objects[-1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    pod = group["template"]["spec"]
    expected = {"cpu": "4", "memory": "16Gi", "ephemeral-storage": "50Gi", "nvidia.com/gpu": 1}
    assert pod["containers"][0]["resources"] == {"requests": expected, "limits": expected}
    assert pod["volumes"][0]["emptyDir"] == {"sizeLimit": "50Gi"}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


@pytest.mark.parametrize(
    ("tree", "sizes", "pods", "cpus"),
    [
        (TRAIN, {"cpus": 3}, 1, 4),
        (SCORE, {"workers": 5}, 5, 2),
        (SCORE | {"workers": 3}, {}, 3, 2),
        (TUNE | {"concurrency": 2, "workers_per_trial": 3}, {}, 6, 2),
        (TUNE, {"workers": 4, "cpus": 2}, 4, 3),
    ],
)
def test_options_size_what_the_file_leaves_open(
    tree: dict[str, Any], sizes: dict[str, int], pods: int, cpus: int
) -> None:
    load = job(tree, **sizes)
    assert (load.workers, load.most_workers, load.cpus) == (pods, pods, cpus)


def test_sizes_that_the_file_sets_are_changed_there() -> None:
    tree = scaled(workers=2, cpus_per_worker=4, accelerator="cpu")
    assert refusal(lambda: job(tree, workers=3, cpus=8, gpus=1)) == [
        "--workers 3: scale.workers takes 2; use --set scale.workers=3",
        "--cpus 8: scale.cpus_per_worker takes 4.0; use --set scale.cpus_per_worker=8",
        "--gpus 1: scale.accelerator is cpu; use --set scale.accelerator=gpu",
    ]
    assert refusal(lambda: job(TRAIN, gpus=8)) == [
        "--gpus 8: each worker uses one GPU, allowed are 0 and 1; use more workers"
    ]
    assert job(TUNE, gpus=8).gpus == 8  # several trials share a pod


@pytest.mark.parametrize(
    ("tree", "place"),
    [(TRAIN, "scale"), (SCORE, ""), (TUNE, "base.scale")],
    ids=["train", "score", "tune"],
)
@pytest.mark.parametrize(("gpus", "became"), [(1, "gpu"), (0, "cpu"), (None, "cpu")])
def test_what_auto_became_is_in_the_file_and_reported(
    tree: dict[str, Any], place: str, gpus: int | None, became: str
) -> None:
    load = workload.of_job(files.parse(tree), Sizes(gpus=gpus))
    section: Any = load.content
    for step in filter(None, place.split(".")):
        section = section[step]
    assert section["accelerator"] == became
    assert load.gpus == (became == "gpu")
    name = f"{place}.accelerator".lstrip(".")
    why = "--gpus 1" if gpus else "without --gpus"
    assert load.notes == (f"{name}: auto became {became} ({why})",)


def test_an_accelerator_that_the_file_sets_is_not_reported() -> None:
    load = job(scaled(accelerator="gpu"))
    assert (load.gpus, load.notes) == (1, ())


def test_paths_of_this_machine_are_refused_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = SCORE | {"uri": ["rows/a", "s3://bucket/b"], "output": "/scores", "model": "file://art"}
    assert refusal(lambda: job(tree)) == [
        f"{place}: found {uri}, a path of this machine ({path}), which pods cannot read; use an s3:// "
        "URI, or mount a claim there with --volume CLAIM:PATH (mounted: nothing)"
        for place, uri, path in (
            ("uri.0", "rows/a", tmp_path / "rows/a"),
            ("output", "/scores", "/scores"),
            ("model", "file://art", tmp_path / "art"),
        )
    ]
    sweep = TUNE | {"base": TRAIN | {"data": TRAIN["data"] | {"uri": "rows"}}}
    assert refusal(lambda: job(sweep))[0].startswith("base.data.uri: found rows, a path")


def test_paths_in_a_mounted_claim_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shared = Volume("shards", str(tmp_path / "rows"))
    load = job(SCORE | {"uri": "rows/*.parquet"}, [shared])
    assert load.content["uri"] == str(tmp_path / "rows/*.parquet")
    pod = worker_of(rendered(load, {"volumes": (shared,)}))
    assert {"name": "claim-1", "persistentVolumeClaim": {"claimName": "shards"}} in pod["volumes"]
    assert {"name": "claim-1", "mountPath": shared.path} in pod["containers"][0]["volumeMounts"]
    # A sibling whose name begins alike is not mounted.
    (mistake,) = refusal(lambda: job(SCORE | {"uri": "rows2/a"}, [shared]))
    assert f"(mounted: {shared.path})" in mistake


def test_workers_are_placed_and_heads_are_not() -> None:
    taint = {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}
    objects = rendered(
        pod={
            "node_selector": (("pool", "batch"),),
            "tolerations": (taint,),
            "pull_secrets": ("registry",),
            "topology_key": "topology.kubernetes.io/zone",
        }
    )
    pod = worker_of(objects)
    assert pod["nodeSelector"] == {"pool": "batch"}
    assert pod["tolerations"] == [taint]
    assert pod["topologySpreadConstraints"] == [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {
                "matchLabels": {
                    "app.kubernetes.io/instance": "mnist",
                    "ray.io/node-type": "worker",
                }
            },
            "matchLabelKeys": ["ray.io/cluster"],
        }
    ]
    spec = objects[-1]["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert not {"nodeSelector", "tolerations", "topologySpreadConstraints"} & head.keys()
    for each in (pod, head, spec["submitterPodTemplate"]["spec"]):
        assert each["imagePullSecrets"] == [{"name": "registry"}]
    assert "topologySpreadConstraints" not in worker_of(rendered())


def test_jobs_end_and_are_queued() -> None:
    *_, ray_job = rendered(deadline_s=3600, ttl_s=0, queue="team", priority_class="urgent")
    spec = ray_job["spec"]
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (3600, 0)
    assert ray_job["metadata"]["labels"] == {
        "kueue.x-k8s.io/queue-name": "team",
        "kueue.x-k8s.io/priority-class": "urgent",
    }
    *_, default = rendered()
    assert default["spec"]["activeDeadlineSeconds"] == 86_400
    assert "suspend" not in default["spec"]
    assert default["metadata"] == {"name": "mnist"}


def test_endpoints_are_a_service_on_different_nodes() -> None:
    load = endpoints(replicas=3, num_cpus=2)
    head_budget, worker_budget, service = rendered(load)
    assert service["kind"] == "RayService"
    assert service["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    served = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert serve.SERVE.validate_python(served).spec.replicas == 3
    assert (served["http_options"]["host"], served["proxy_location"]) == ("0.0.0.0", "EveryNode")
    assert load.notes == (
        "http_options.host: 127.0.0.1 became 0.0.0.0",
        "proxy_location: HeadOnly became EveryNode",
    )
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (3, 3)
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["cpu"] == "2"
    (spread,) = pod["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "DoNotSchedule"
    zones = worker_of(rendered(load, {"topology_key": "topology.kubernetes.io/zone"}))
    assert [
        (part["topologyKey"], part["whenUnsatisfiable"])
        for part in zones["topologySpreadConstraints"]
    ] == [
        ("topology.kubernetes.io/zone", "ScheduleAnyway"),
        ("kubernetes.io/hostname", "DoNotSchedule"),
    ]
    assert "hourglass-s3" not in to_yaml([service])
    assert worker_budget["spec"]["selector"]["matchLabels"]["ray.io/node-type"] == "worker"
    assert head_budget["spec"]["minAvailable"] == 1
    assert "enableInTreeAutoscaling" not in service["spec"]["rayClusterConfig"]


def test_an_incremental_upgrade_has_a_gateway_and_the_autoscaler() -> None:
    *_, service = rendered(endpoints(replicas={"min": 2, "max": 4}), gateway_class="istio")
    upgrade = service["spec"]["upgradeStrategy"]
    assert upgrade["type"] == "NewClusterWithIncrementalUpgrade"
    options = upgrade["clusterUpgradeOptions"]
    assert options["gatewayClassName"] == "istio"
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (1, 4)
    head = cluster["headGroupSpec"]["template"]["spec"]
    mounted = {mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    assert "api-token" not in mounted


def test_serve_files_that_pods_cannot_run_are_refused() -> None:
    tree = yaml.safe_load(yaml.safe_dump(SERVE))
    tree["http_options"] = {"port": 9000, "ssl_keyfile": "k", "ssl_certfile": "c"}
    tree["applications"][0]["args"]["models"] = [{"name": "m", "uri": "s3://bucket/artifact"}]
    file = serve.SERVE.validate_python(tree)
    assert refusal(lambda: workload.of_endpoints(file, "live", Sizes(2, 3, 1))) == [
        "--workers 2: a serve file sets replicas; use --set applications.0.args.replicas=2",
        "--cpus 3: a serve file sets num_cpus; use --set applications.0.args.num_cpus=3",
        "--gpus 1: endpoints compute on CPUs; remove it",
        "http_options.port: found 9000, allowed is 8000, which the network policies open",
        "http_options.ssl_certfile: KubeRay's probes use plain HTTP; end TLS at the Gateway instead",
        "applications.0.args.models.0.uri: found s3://bucket/artifact, but endpoints have no S3 keys; "
        "register the model and use models:/NAME@ALIAS",
    ]


@pytest.mark.parametrize("tree", [TRAIN, SCORE, TUNE], ids=lambda tree: tree["kind"])
def test_a_schedule_starts_the_job_over_each_time(tree: dict[str, Any]) -> None:
    *_, cron = rendered(job(tree), schedule="0 2 * * *", time_zone="Europe/Berlin")
    assert cron["kind"] == "RayCronJob"
    assert (cron["spec"]["schedule"], cron["spec"]["timeZone"]) == ("0 2 * * *", "Europe/Berlin")
    *_, once = rendered(job(tree))
    expected = once["spec"]["entrypoint"].replace(tree["kind"], f"{tree['kind']} --fresh", 1)
    assert cron["spec"]["jobTemplate"] == once["spec"] | {"entrypoint": expected}
    *_, default = rendered(job(tree), schedule="@daily")
    assert default["spec"]["timeZone"] == "Etc/UTC"


def test_a_schedule_says_whether_it_promotes() -> None:
    promoting = TUNE | {
        "base": TRAIN | {"track": {"register": "mnist"}},
        "promote_if": "better_than_champion",
    }
    assert job(promoting).when_scheduled == job(SCORE).when_scheduled == ""
    for tree in (TRAIN, TUNE):
        assert job(tree).when_scheduled.startswith("no version becomes champion by itself")


def test_options_that_do_not_fit_are_refused_all_at_once() -> None:
    def refused(load: Workload, **run: Any) -> list[str]:
        return [line.partition(":")[0] for line in refusal(lambda: rendered(load, **run))]

    live = {"deadline_s": 1, "ttl_s": 0, "schedule": "@daily", "priority_class": "p"}
    assert refused(endpoints(), **live) == [
        "--deadline-s 1",
        "--ttl-s 0",
        "--schedule @daily",
        "--priority-class p",
    ]
    growing = endpoints(replicas={"min": 1, "max": 2})
    assert refused(growing, queue="team") == ["--queue team"]
    assert refused(job(TRAIN), gateway_class="istio") == ["--gateway-class istio"]
    assert refused(job(TRAIN), time_zone="Etc/UTC") == ["--time-zone Etc/UTC"]
    assert refused(job(TRAIN), schedule="nightly", queue="team") == [
        "--schedule nightly",
        "--queue team",
    ]
    assert rendered(endpoints(replicas=2), queue="team", priority_class="p")


@pytest.mark.parametrize("text", ["TZ=Europe/Berlin 0 2 * * *", "0 2 * *", "@midday", ""])
def test_schedules_that_kuberay_refuses_are_refused(text: str) -> None:
    (mistake,) = refusal(lambda: rendered(schedule=text))
    assert mistake.startswith(f"--schedule {text}: allowed are five fields of cron ('0 2 * * *')")


def test_without_gpus_nothing_mentions_them() -> None:
    assert "nvidia" not in to_yaml(rendered())


def test_the_namespace_is_on_every_object_or_on_none() -> None:
    assert {o["metadata"].get("namespace") for o in rendered(namespace="team")} == {"team"}
    assert {o["metadata"].get("namespace") for o in rendered()} == {None}


def test_the_text_reads_back_equal_without_anchors() -> None:
    objects = rendered()
    text = to_yaml(objects)
    assert list(yaml.safe_load_all(text)) == objects
    assert "&id" not in text
    assert "mnist.yaml: |" in text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mnist", "mnist"),
        ("Jobs/MNIST train.yaml", "jobs-mnist-train-yaml"),
        ("--x__y--", "x-y"),
        ("2024 run", "job-2024-run"),
    ],
)
def test_names_are_made_safe(text: str, name: str) -> None:
    assert dns_name(text) == name


@pytest.mark.parametrize("limit", [NAME_LIMIT, SCHEDULED_NAME_LIMIT])
def test_long_names_are_cut_and_stay_different(limit: int) -> None:
    one, two = dns_name("a" * 80 + "1", limit), dns_name("a" * 80 + "2", limit)
    assert len(one) == limit
    assert one != two


def test_a_scheduled_name_leaves_room_for_the_time() -> None:
    *_, cron = rendered(job(TRAIN | {"name": "a" * 80}), schedule="@daily")
    assert len(cron["metadata"]["name"]) == SCHEDULED_NAME_LIMIT


def test_a_name_without_letters_is_refused() -> None:
    with pytest.raises(SpecError, match="found '___', allowed is a name with a letter or digit"):
        dns_name("___")


def test_a_job_file_larger_than_a_config_map_is_refused() -> None:
    many = ["s3://bucket/" + "x" * 100] * (JOB_BYTES_LIMIT // 100)
    with pytest.raises(
        SpecError, match=f"allowed are {JOB_BYTES_LIMIT} because of the size of a ConfigMap"
    ):
        rendered(job(SCORE | {"uri": many}))


def invoked(tmp_path: Path, tree: dict[str, Any], *options: str) -> Any:
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(tree))
    return CliRunner().invoke(app, ["render", str(path), *options])


def test_the_command_prints_objects_to_stdout_and_notes_to_stderr(tmp_path: Path) -> None:
    done = invoked(
        tmp_path,
        TRAIN,
        "--toleration=pool=batch:NoExecute",
        "--toleration=spot",
        "--node-selector=gpu=h200",
        "--schedule=@weekly",
        "--volume=shards:/mnt/shards/",
    )
    pod = worker_of(list(yaml.safe_load_all(done.stdout)))
    assert pod["tolerations"] == [
        {"operator": "Equal", "key": "pool", "value": "batch", "effect": "NoExecute"},
        {"operator": "Exists", "key": "spot"},
    ]
    assert pod["nodeSelector"] == {"gpu": "h200"}
    assert pod["containers"][0]["volumeMounts"][-1]["mountPath"] == "/mnt/shards"
    accelerator, promotion = done.stderr.splitlines()
    assert accelerator == "note: scale.accelerator: auto became cpu (without --gpus)"
    assert promotion.startswith("note: no version becomes champion by itself")


def test_a_serve_file_is_named_after_its_file(tmp_path: Path) -> None:
    *_, service = yaml.safe_load_all(invoked(tmp_path, SERVE).stdout)
    assert (service["kind"], service["metadata"]["name"]) == ("RayService", "file")


def test_unreadable_options_are_refused_all_at_once(tmp_path: Path) -> None:
    done = invoked(
        tmp_path, TRAIN, "--toleration=a:Never", "--node-selector=pool", "--volume=shards:/tmp"
    )
    assert str(done.exception).splitlines() == [
        "--node-selector pool: allowed is KEY=VALUE",
        "--toleration a:Never: allowed is KEY, KEY=VALUE, and either with :NoSchedule, "
        ":PreferNoSchedule or :NoExecute",
        "--volume shards:/tmp: allowed is CLAIM:PATH with an absolute path other than / and /tmp",
    ]
