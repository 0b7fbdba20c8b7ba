"""Job files become Kubernetes objects: names, commands, sizes and refusals, without a cluster."""

from typing import Any

import pytest
import yaml

from hourglass.cluster.render import JOB_BYTES_LIMIT, NAME_LIMIT, dns_name, manifests, to_yaml
from hourglass.errors import SpecError

JOB = "kind: train\n# a comment that stays\ndata: {uri: s3://bucket/rows}\n"


def rendered(job: str = JOB, name: str = "mnist", **change: Any) -> list[dict[str, Any]]:
    wanted = {"image": "hourglass:0.1.0", "workers": 2, "cpus_per_worker": 3} | change
    return manifests(job, name, **wanted)


def test_the_job_file_travels_as_it_is_and_the_head_reads_it() -> None:
    config, _, job = rendered()
    assert config["data"] == {"mnist.yaml": JOB}
    assert job["spec"]["entrypoint"] == "hourglass train /etc/hourglass/mnist.yaml"
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "job", "configMap": {"name": config["metadata"]["name"]}} in head["volumes"]
    mounts = {m["name"]: m["mountPath"] for m in head["containers"][0]["volumeMounts"]}
    assert mounts == {"scratch": "/tmp", "job": "/etc/hourglass"}


@pytest.mark.parametrize("kind", ["train", "score"])
def test_the_kind_is_the_command(kind: str) -> None:
    *_, job = rendered(f"kind: {kind}\n")
    assert job["spec"]["entrypoint"].startswith(f"hourglass {kind} ")


def test_workers_ask_for_one_cpu_more_than_training_takes() -> None:
    *_, job = rendered(workers=4, cpus_per_worker=3, gpus_per_worker=2, memory_gib_per_worker=16)
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
    pod = group["template"]["spec"]
    expected = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": 2}
    assert pod["containers"][0]["resources"] == {"requests": expected, "limits": expected}
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"


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


def test_long_names_are_cut_and_stay_different() -> None:
    one, two = dns_name("a" * 80 + "1"), dns_name("a" * 80 + "2")
    assert len(one) == NAME_LIMIT
    assert one != two


def test_a_name_without_letters_is_refused() -> None:
    with pytest.raises(SpecError, match="found '___', allowed is a name with a letter or digit"):
        dns_name("___")


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("kind: trian\n", "kind: found trian, allowed train, score, did you mean 'train'?"),
        ("- kind\n", "kind: missing, allowed train, score"),
    ],
)
def test_kinds_without_a_command_are_refused(job: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        rendered(job)
    assert str(refused.value) == message


def test_a_job_file_larger_than_a_config_map_is_refused() -> None:
    with pytest.raises(
        SpecError, match=f"allowed are {JOB_BYTES_LIMIT} because of the size of a ConfigMap"
    ):
        rendered(JOB + "#" * JOB_BYTES_LIMIT)
