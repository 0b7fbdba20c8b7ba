"""Every YAML shipped is a test case: it validates, says what it is for, and picks no dead option."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from hourglass.config import files, serve, train, tune
from hourglass.errors import SpecError
from hourglass.tuning.space import points

ROOT = Path(__file__).parents[2]
JOBS = sorted(ROOT.glob("jobs/**/*.yaml"))
SERVE = sorted(ROOT.glob("serve/*.yaml"))
TUNE = sorted(ROOT.glob("tune_spaces/*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_jobs_validate(path: Path) -> None:
    job = files.load(path)
    assert job.kind == path.stem
    assert files.parse(files.dump(job)) == job


@pytest.mark.parametrize("path", TUNE, ids=lambda path: path.name)
def test_all_points_of_a_grid_and_twenty_draws_of_a_space_are_jobs(path: Path) -> None:
    sweep = files.load(path)
    assert isinstance(sweep, tune.TuneJob)
    assert files.parse(files.dump(sweep)) == sweep
    trials = sweep.max_trials if sweep.search.kind == "grid" else 20
    found = points(tune.TuneJob.model_validate({**dict(sweep), "max_trials": trials}))
    assert [point.reason for point in found] == [""] * len(found)
    assert len(found) == trials or sweep.search.kind == "grid"
    swept = {path for point in found for path in point.values}
    assert swept == set(sweep.space), "a value that no condition lets through"


@pytest.mark.parametrize("path", TUNE, ids=lambda path: path.name)
def test_tune_files_fit_the_schema_on_disk(path: Path) -> None:
    """With the base as a path, which only a file may have."""
    schema = json.loads((ROOT / "docs/schema/tune.json").read_text())
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)


@pytest.mark.parametrize("path", SERVE, ids=lambda path: path.name)
def test_serve_files_validate_and_stay_on_loopback(path: Path) -> None:
    assert serve.load(path).http_options.host == "127.0.0.1"


@pytest.mark.parametrize("path", JOBS + SERVE + TUNE, ids=lambda path: str(path.relative_to(ROOT)))
def test_headers_say_purpose_cost_and_result(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header[0].startswith("# yaml-language-server: $schema=")
    schema = (path.parent / header[0].partition("=")[2]).resolve()
    assert schema.is_file(), f"{schema} is missing: run `make schema`"
    for word in ("Purpose:", "Cost:", "Expected:"):
        assert any(line.startswith(f"# {word}") for line in header), f"{path}: no '{word}'"


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("train", train.TRAIN),
        ("score", train.SCORE),
        ("tune", tune.TUNE),
        ("serve", serve.SERVE),
    ],
)
def test_schemas_on_disk_are_those_of_the_code(name: str, adapter: object) -> None:
    written = json.loads((ROOT / f"docs/schema/{name}.json").read_text())
    assert written == adapter.json_schema(by_alias=True), "run `make schema`"


def undescribed(node: Any, place: str = "") -> Iterator[str]:
    """The properties of a JSON Schema, at any depth, without a description."""
    if isinstance(node, list):
        for item in node:
            yield from undescribed(item, place)
    if isinstance(node, dict):
        for name, field in node.get("properties", {}).items():
            if not field.get("description", "").strip():
                yield f"{place}.{name}"
        for key, below in node.items():
            if key not in ("if", "default"):  # conditions and values, not definitions
                yield from undescribed(below, f"{place}/{key}")


SCHEMAS = sorted(ROOT.glob("docs/schema/*.json"))


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_every_field_of_a_schema_is_described(path: Path) -> None:
    assert list(undescribed(json.loads(path.read_text()))) == []


def test_a_field_without_a_description_is_noticed() -> None:
    """Negative control of the test above."""
    schema = json.loads((ROOT / "docs/schema/tune.json").read_text())
    del schema["$defs"]["Adam"]["properties"]["lr"]["description"]
    del schema["properties"]["space"]["description"]
    schema["$defs"]["Median"]["properties"]["kind"]["description"] = " "
    assert sorted(undescribed(schema)) == [".space", "/$defs/Adam.lr", "/$defs/Median.kind"]


def test_a_header_without_its_words_is_noticed(tmp_path: Path) -> None:
    """Negative control of the checks above."""
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({"kind": "train"}))
    with pytest.raises((AssertionError, IndexError)):
        test_headers_say_purpose_cost_and_result(path)
    with pytest.raises(SpecError):
        files.load(path)
