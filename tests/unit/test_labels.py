"""Versions as labels of nodes, and what users may add to them."""

import pytest

from hourglass.cluster import labels
from hourglass.errors import ClusterError


def test_labels_survive_the_way_to_ray_and_back() -> None:
    option = labels.option({"zone": "b", "example.org/rack": "7"})
    pairs = dict(pair.split("=") for pair in option.removeprefix("--labels=").split(","))
    assert labels.versions_in(pairs) == labels.versions()
    assert labels.users({**pairs, "ray.io/node-id": "x"}) == {"zone": "b", "example.org/rack": "7"}
    assert "+" not in option


def test_ray_accepts_the_option() -> None:
    """Its own check, which refuses a `+`: the control."""
    from ray._private.label_utils import parse_node_labels_string

    parse_node_labels_string(labels.option({"zone": "b"}).removeprefix("--labels="))
    with pytest.raises(ValueError):
        parse_node_labels_string("torch=2.13.0+cpu")


def test_all_mistakes_of_labels_are_listed() -> None:
    assert labels.parse_labels(None) == {}
    assert labels.parse_labels("zone=b, rack = 7") == {"zone": "b", "rack": "7"}
    with pytest.raises(ClusterError) as caught:
        labels.parse_labels("zone,a=b c,-x=1,ray.io/gpu=1,hourglass/torch=3,ok=1")
    lines = str(caught.value).splitlines()
    assert [line.partition(";")[0] for line in lines[3:]] == [
        "--labels: ray.io/gpu is reserved",
        "--labels: hourglass/torch is reserved",
    ]
    for line, found in zip(lines[:3], ("zone", "a=b c", "-x=1"), strict=True):
        assert line.startswith(f"--labels: found {found!r}, allowed is key=value")


def test_each_different_version_is_named() -> None:
    own = labels.versions()
    labels.require_same_versions("node x", own)
    labels.require_same_versions("node x", {})  # not started by hourglass: checked by a task
    build = {**own, "torch": own["torch"].partition("+")[0] + "+cu130"}
    labels.require_same_versions("node x", build)
    with pytest.raises(ClusterError) as caught:
        labels.require_same_versions("node x", {**own, "torch": "1.0", "ray": "2.0"})
    assert str(caught.value) == (
        f"node x: the versions differ (ray {own['ray']} here, 2.0 there; torch {own['torch']} here, "
        "1.0 there); install the same versions on all machines of a cluster"
    )
