"""Jobs on a cluster: their metadata, the list of them, and their logs."""

import asyncio
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hourglass.cluster import submit
from hourglass.cluster.plan import job_environment, plan
from hourglass.errors import ClusterError
from hourglass.settings import Settings

LOG = "first\nsecond\nthe last line\n"


class Broken:
    """A client whose connection breaks after the first line, and whose job has ended by then."""

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "first\n"
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(status="SUCCEEDED")

    def get_job_logs(self, job: str) -> str:
        return LOG


def test_the_rest_is_printed_of_a_job_that_ended_while_the_connection_was_down(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asyncio.run(submit._print_log(Broken(), "ended"))
    assert capsys.readouterr().out == LOG


class Jobs:
    """A client of a cluster that takes jobs, and lists them with one of another program."""

    def __init__(self) -> None:
        self.taken: list[Any] = [details("theirs", "python train.py", None)]

    def submit_job(self, **job: Any) -> None:
        self.taken.append(details(job["submission_id"], job["entrypoint"], job["metadata"]))

    def list_jobs(self) -> list[Any]:
        return self.taken


class Status(StrEnum):
    PENDING = "PENDING"


def details(job: str, command: str, metadata: dict[str, str] | None) -> Any:
    return SimpleNamespace(
        submission_id=job,
        entrypoint=command,
        metadata=metadata,
        status=Status.PENDING,
        start_time=0,
    )


def test_the_list_has_name_and_file_of_each_job(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "kind: train\ndata: {uri: x, features: {vector: x}}\nmodel: {preset: anomaly}\n"
    )
    file = str(tmp_path / "mine.yaml")
    client = Jobs()
    settings = Settings.model_validate({})
    submit.send(client, plan(file, settings=settings, job="first"))
    submit.send(client, plan(file, ["name=other"], settings=settings, job="second"))
    assert [(row[0], *row[4:]) for row in submit.table(client)] == [
        ("theirs", "-", "-", "python train.py"),
        ("first", "mine", file, "hourglass train job.yaml"),
        ("second", "other", file, "hourglass train job.yaml"),
    ]


def test_file_and_name_do_not_change_the_digest() -> None:
    same = submit.Plan("job", "command", "content", {}, "a.yaml", "a")
    assert same.digest == submit.Plan("job", "command", "content", {}, "b.yaml", "b").digest


def test_a_job_inherits_what_its_environment_sets_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "RUNS", "TRACKING"):
        monkeypatch.delenv(f"HOURGLASS_{name}", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert job_environment(Settings()) == {}
    found = {"HOURGLASS_HOME": str(tmp_path), "HOURGLASS_RUNS": "s3://bucket/runs"}
    found |= {"HOURGLASS_TRACKING": "files", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOURGLASS_SERVE_TOKEN", "a-secret-that-stays-here")
    assert job_environment(Settings()) == found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:5000")
    with pytest.raises(ClusterError, match="contains a password"):
        job_environment(Settings())


class Queued(Jobs):
    """A client whose job begins at the third look."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.asked = 0, {}

    def submit_job(self, **job: Any) -> None:
        self.asked = job

    def get_job_info(self, job: str) -> SimpleNamespace:
        self.looks += 1
        return SimpleNamespace(status="PENDING" if self.looks < 3 else "RUNNING")


def test_a_job_reserves_on_the_head_and_a_wait_is_explained_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "kind: train\ndata: {uri: x, features: {vector: x}}\nmodel: {preset: anomaly}\n"
    )
    client = Queued()
    made = plan(tmp_path / "mine.yaml", settings=Settings(), job="q", cpus=2.0, memory_gib=1.5)
    submit.send(client, made)  # type: ignore[arg-type]
    assert client.asked["entrypoint_num_cpus"] == 2.0
    assert client.asked["entrypoint_memory"] == 3 * 2**29
    assert client.asked["entrypoint_resources"] == {"node:__internal_head__": 0.001}
    monkeypatch.setattr(submit, "_PENDING_S", -1.0)
    submit._await_start(client, "q")
    assert client.looks == 3
    assert capsys.readouterr().err.count("job q waits for the CPUs and memory") == 1
    submit.send(client, submit.Plan("free", "true"))  # type: ignore[arg-type]
    assert client.asked["entrypoint_resources"] is None
