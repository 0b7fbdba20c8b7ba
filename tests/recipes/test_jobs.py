"""Every YAML shipped is a test case: it validates, says what it is for, and picks no dead option."""

from pathlib import Path

import pytest
import yaml

from hourglass import spec
from hourglass.serving import schemas

ROOT = Path(__file__).parents[2]
JOBS = sorted(ROOT.glob("jobs/**/*.yaml"))
SERVE = sorted(ROOT.glob("serve/*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(ROOT)))
def test_jobs_validate(path: Path) -> None:
    job = spec.load(path)
    assert job.kind == path.stem
    assert spec.parse(spec.dump(job)) == job


@pytest.mark.parametrize("path", SERVE, ids=lambda path: path.name)
def test_serve_files_validate_and_stay_on_loopback(path: Path) -> None:
    assert schemas.load(path).http_options.host == "127.0.0.1"


@pytest.mark.parametrize("path", JOBS + SERVE, ids=lambda path: str(path.relative_to(ROOT)))
def test_headers_say_purpose_cost_and_result(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header[0].startswith("# yaml-language-server: $schema=")
    schema = (path.parent / header[0].partition("=")[2]).resolve()
    assert schema.is_file(), f"{schema} is missing: run `make schema`"
    for word in ("Purpose:", "Cost:", "Expected:"):
        assert any(line.startswith(f"# {word}") for line in header), f"{path}: no '{word}'"


@pytest.mark.parametrize(
    ("name", "adapter"),
    [("train", spec.TRAIN), ("score", spec.SCORE), ("serve", schemas.SERVE)],
)
def test_schemas_on_disk_are_those_of_the_code(name: str, adapter: object) -> None:
    import json

    written = json.loads((ROOT / f"docs/schema/{name}.json").read_text())
    assert written == adapter.json_schema(by_alias=True), "run `make schema`"


def test_a_header_without_its_words_is_noticed(tmp_path: Path) -> None:
    """Negative control of the checks above."""
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({"kind": "train"}))
    with pytest.raises((AssertionError, IndexError)):
        test_headers_say_purpose_cost_and_result(path)
    with pytest.raises(spec.SpecError):
        spec.load(path)
