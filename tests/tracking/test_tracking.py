"""Runs reach MLflow whole and once, whatever it does meanwhile; models are what they say.

A real SQLite store, and for the faults a real MLflow server behind a proxy that can fail.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hourglass import artifact, cli, run, tracking
from hourglass.errors import ArtifactError, ReadError, RegistryError, WriteError, redact
from hourglass.inference.predictor import Predictor
from hourglass.progress import TrainProgress
from hourglass.settings import Settings
from hourglass.tracking import mlflow as store
from hourglass.tracking import mlflow_runs, registry, tracker, ui
from hourglass.tracking.outbox import Outbox

sys.path.insert(0, str(Path(__file__).parent))
from tracking_kit import DATASET, at, history, job, run_of, trained

Save = Callable[..., str]


def forked(settings: Settings) -> Settings:
    """The same store under another name: a forked child must not use its parent's connections."""
    return at(settings.root, f"sqlite:///{settings.root}/./mlflow.db")


def events(spool: Outbox) -> list[dict[str, Any]]:
    return [event for _, event in spool.pending()]


def spooled(settings: Settings, name: str, epochs: int = 3) -> Outbox:
    """A spool with a begin and some epochs, as a killed driver leaves it."""
    spool = Outbox(settings.root / "outbox", job(name).run_name)
    spool.append("begin", **tracker._who(job(name)), dataset=DATASET)
    for epoch in range(epochs):
        spool.append("epoch", epoch=epoch, metrics={"loss": 1.0 / (epoch + 1)})
    return spool


# -- a run ------------------------------------------------------------------------------------


def test_a_run_is_recorded_whole(settings: Settings, tiny_artifact: Path) -> None:
    run = tracking.start(settings, job("whole", "tiny", epochs=3), DATASET)
    for epoch in range(3):
        run.log({"loss": 1.0 / (epoch + 1), "holdout_mse": 0.5 / (epoch + 1)}, epoch)
    done = run.finish("finished", str(tiny_artifact))

    assert (
        done.note
        == f"recorded in MLflow (sqlite:///{settings.root}/mlflow.db) as run {done.run_id}"
    )
    recorded = run_of(settings, job("whole", epochs=3).run_name)
    assert recorded.info.run_id == done.run_id
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params["model.network.widths"] == "[7, 5]"
    assert recorded.data.params["train.epochs"] == "3"
    assert recorded.data.tags["hourglass.quantile"] == "0.99"
    assert history(settings, done.run_id, "loss") == [(0, 1.0), (1, 0.5), (2, 1.0 / 3.0)]
    dataset = recorded.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("digits", "d" * 36)
    assert json.loads(dataset.source) == {"uri": "/data/digits"}
    assert not Outbox.all(settings.root / "outbox")
    assert not list(Path.cwd().iterdir())  # no ./mlruns, no ./mlflow.db

    version = registry.version(settings, "tiny", done.version)
    assert version.aliases == ("challenger",)
    assert version.digest == Predictor.load(str(tiny_artifact)).artifact.digest
    assert version.metrics == {"holdout_mse": 0.25}


def test_an_ensembles_members_have_metrics_of_their_own(
    settings: Settings, tmp_path: Path, save_artifact: Save
) -> None:
    """What run.train does: epochs of each member, then the ensemble's figures; said twice, kept once."""
    made = job("ensemble", epochs=2, seeds=3)
    records = [
        {"member": member, "epoch": epoch, "loss": 10 * member + epoch, "rows_per_s": 5.0}
        for member in (1.0, 2.0, 3.0)
        for epoch in (1.0, 2.0)
    ]
    model = tmp_path / "model"
    save_artifact(model, ensemble={"members": 3, "primary": 2, "combine": "mean"})
    trained(model, records, {"epoch": 2, "loss": 0.21, "rank_agreement": 0.9})
    received: list[str] = []
    shown = SimpleNamespace(
        to=lambda done, total, text: received.append(text), print=received.append
    )
    listener = run._Recording(TrainProgress(shown), settings)  # type: ignore[arg-type]
    counted = {"rows": 9, "shards": 1, "train_rows": 8, "holdout_rows": 1, "dropped_rows": 0}
    reported = {"imputed_cells": 0, "constant_columns": 0, "cached": True}
    listener.prepared(made, DATASET | counted | reported)
    for record in [*records, *records[2:]]:
        listener.epoch(record)
    assert listener.tracker is not None
    done = listener.tracker.finish("finished", str(model))
    assert done.run_id is not None
    assert history(settings, done.run_id, "member_1/loss") == [(1, 11.0), (2, 12.0)]
    assert history(settings, done.run_id, "member_3/loss") == [(1, 31.0), (2, 32.0)]
    assert history(settings, done.run_id, "loss") == [(2, 0.21)]
    assert history(settings, done.run_id, "rank_agreement") == [(2, 0.9)]
    assert "member" not in run_of(settings, made.run_name).data.metrics
    assert received[2:4] == [
        "member 1/3  loss 11.00000  5 rows/s",
        "member 1/3  loss 12.00000  5 rows/s",
    ]


def test_starting_and_logging_do_not_wait_for_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any) -> None:
        time.sleep(30)

    monkeypatch.setattr(mlflow_runs.MlflowWriter, "__init__", slow)
    monkeypatch.setattr(tracker, "FINISH_S", 0.3)
    began = time.perf_counter()
    run = tracking.start(at(tmp_path), job("fast"), DATASET)
    for epoch in range(20):
        run.log({"loss": 0.5}, epoch)
    assert time.perf_counter() - began < 1.0
    done = run.finish("finished", None)
    assert time.perf_counter() - began < 2.0
    assert "has not taken everything: it is too slow" in done.note
    assert len(events(Outbox(tmp_path / "outbox", job("fast").run_name))) == 22


def test_a_full_disk_stops_nothing_and_is_counted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracking.start(settings, job("full"), DATASET)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "append", full)
        run.log({"loss": 0.5}, 0)
    done = run.finish("finished", None)
    assert "1 event is lost" in done.note
    assert "cannot be written: No space left on device; the same command records" in done.note


def test_a_metric_that_mlflow_refuses_does_not_block_the_rest(settings: Settings) -> None:
    run = tracking.start(settings, job("refused"), DATASET)
    run.log({"loss?!": 0.5}, 0)
    run.log({"loss": 0.25}, 1)
    done = run.finish("failed", None)
    assert 'epoch refused by MLflow: Invalid value "loss?!"' in done.note
    assert history(settings, done.run_id, "loss") == [(1, 0.25)]
    assert run_of(settings, job("refused").run_name).info.status == "FAILED"


@pytest.mark.parametrize("kind", [ReadError, WriteError])
def test_storage_that_does_not_answer_now_is_asked_again(
    settings: Settings, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    read, faults = artifact.read, iter([kind(5, "S3 did not answer in time", "s3://b/k")])

    def fail_once(*args: Any) -> Any:
        for error in faults:
            raise error
        return read(*args)

    monkeypatch.setattr(artifact, "read", fail_once)
    run = tracking.start(settings, job(f"asked-{kind.__name__}"), DATASET)
    done = run.finish("finished", str(tiny_artifact))
    assert next(faults, None) is None
    assert "refused" not in done.note
    made = run_of(settings, job(f"asked-{kind.__name__}").run_name)
    assert len(made.outputs.model_outputs) == 1


def test_what_mlflow_took_and_refused_is_known_after_a_failure(
    settings: Settings, tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end fails once, after an epoch was refused and the model was registered."""
    client = store.client(settings).__class__
    ends, faults = client.set_terminated, iter([ConnectionError("gone")])

    def fail_once(self: Any, *args: Any, **kwargs: Any) -> None:
        for error in faults:
            raise error
        ends(self, *args, **kwargs)

    monkeypatch.setattr(client, "set_terminated", fail_once)
    run = tracking.start(settings, job("failing", "fails"), DATASET)
    run.log({"loss?!": 0.5}, 0)
    done = run.finish("finished", str(tiny_artifact))
    assert next(faults, None) is None
    assert done.registered == tracking.Registered("fails", "1", challenger="1")
    assert 'epoch refused by MLflow: Invalid value "loss?!"' in done.note


@pytest.mark.parametrize("fails", [True, False])
def test_sync_says_what_was_refused_also_where_the_rest_fails(
    settings: Settings, tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spooled(settings, f"sync-{fails}")
    spool.append("artifact", uri=str(tmp_path / "nowhere"), register_as=None)
    spool.append("end", status="finished")
    monkeypatch.setattr(Outbox, "all", lambda _: [spool])

    def gone(*_: Any, **__: Any) -> None:
        raise ConnectionError("gone")

    if fails:
        monkeypatch.setattr(store.client(settings).__class__, "set_terminated", gone)
    synced = tracker.sync(settings)
    (printed,) = synced.messages
    assert f"artifact refused: {tmp_path}/nowhere" in printed
    assert synced.left == fails
    assert ("ConnectionError: gone; the rest stays in" in printed) is fails
    spool.path.unlink(missing_ok=True)  # or a later test delivers it, if it finds the time


def test_a_damaged_artifact_is_not_logged(settings: Settings, tiny_artifact: Path) -> None:
    weights = tiny_artifact / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    run = tracking.start(settings, job("damaged", "damaged"), DATASET)
    done = run.finish("finished", str(tiny_artifact))
    assert done.version is None
    assert "artifact refused:" in done.note
    assert "damaged" not in registry.names(settings)


def test_a_datasets_source_says_every_uri_without_passwords(settings: Settings) -> None:
    uris = ["s3://key:secret@bucket/train", "/data/extra"]
    run = tracking.start(settings, job("uris"), {**DATASET, "name": "train, extra", "uri": uris})
    run.finish("finished", None)
    dataset = run_of(settings, job("uris").run_name).inputs.dataset_inputs[0].dataset
    assert dataset.name == "train, extra"
    assert json.loads(dataset.source) == {"uri": ["s3://***@bucket/train", "/data/extra"]}
    assert "secret" not in str(dataset.to_dictionary())


@pytest.mark.parametrize(
    ("uri", "printed"),
    [("rows/*.parquet", "{}/rows/*.parquet"), (["a", "s3://b/c"], ["{}/a", "s3://b/c"])],
)
def test_a_datasets_source_means_the_same_in_every_folder(
    settings: Settings, uri: Any, printed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"relative-{len(uri)}"
    run = tracking.start(settings, job(name), {**DATASET, "digest": name, "uri": uri})
    here = str(Path.cwd())
    monkeypatch.chdir(tmp_path)
    run.finish("finished", None)
    dataset = run_of(settings, job(name).run_name).inputs.dataset_inputs[0].dataset
    whole = (
        [one.format(here) for one in printed] if isinstance(printed, list) else printed.format(here)
    )
    assert json.loads(dataset.source) == {"uri": whole}
    assert json.loads(dataset.profile)["uri"] == whole


def test_a_dataset_of_more_uris_than_mlflow_takes(settings: Settings) -> None:
    """What is too long for its place is cut there; the profile has all of it."""
    uris = [f"/data/{number:04d}/{'x' * 90}" for number in range(2_000)]
    reported = {**DATASET, "name": ", ".join(uris), "uri": uris}
    run = tracking.start(settings, job("many-uris"), reported)
    done = run.finish("finished", None)
    assert done.note.endswith(f"as run {done.run_id}")  # nothing was refused
    dataset = run_of(settings, job("many-uris").run_name).inputs.dataset_inputs[0].dataset
    first = json.loads(dataset.source)["uri"]
    assert 100 < len(first) < 2_000
    assert first == uris[: len(first)]
    assert json.loads(dataset.profile)["uri"] == uris
    assert dataset.name == ", ".join(uris)[:500]


def test_what_an_earlier_run_was_refused_is_said(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever delivers for another says what MLflow did not take, and nobody else would."""
    spool = spooled(settings, "other")
    spool.append("artifact", uri=str(tmp_path / "nowhere"), register_as=None)
    spool.append("end", status="finished")
    monkeypatch.setattr(Outbox, "all", lambda _: [spool])
    run = tracking.start(settings, job("deliverer"), DATASET)
    while spool.path.exists():
        time.sleep(0.05)
    note = run.finish("finished", None).note
    assert f"{spool.run_name}: artifact refused: {tmp_path}/nowhere" in note


# -- once, not twice --------------------------------------------------------------------------


def test_the_same_run_again_is_the_same_run_and_version(
    settings: Settings, tiny_artifact: Path
) -> None:
    finished = []
    for _ in range(2):
        run = tracking.start(settings, job("again", "again"), DATASET)
        for epoch in range(2):
            run.log({"loss": 1.0 / (epoch + 1)}, epoch)
        finished.append(run.finish("finished", str(tiny_artifact)))
    assert finished[0].run_id == finished[1].run_id
    assert finished[0].version == finished[1].version == "1"
    assert history(settings, finished[0].run_id, "loss") == [(0, 1.0), (1, 0.5)]
    assert len(run_of(settings, job("again").run_name).inputs.dataset_inputs) == 1


@pytest.mark.parametrize("guard", [True, False])
def test_killed_between_delivery_and_record(
    settings: Settings, guard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deliverer dies after MLflow took epoch 1, before the position is recorded."""
    name = f"killed-{guard}"
    spool = spooled(settings, name)
    third = [position for position, _ in spool.pending()][2]
    child = os.fork()
    if child == 0:
        mark = Outbox.mark
        Outbox.mark = lambda self, at: os._exit(9) if at == third else mark(self, at)  # type: ignore
        tracker.drain(spool, forked(settings))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    spool.append("epoch", epoch=1, metrics={"loss": 0.5})  # as a resumed run reports it again

    if not guard:  # negative control: without the look at the known steps, epoch 1 is there twice
        monkeypatch.setattr(mlflow_runs.MlflowWriter, "_known_steps", lambda self, *_: set())
        monkeypatch.setattr(mlflow_runs.MlflowWriter, "_remember", lambda *_: None)
    synced = tracker.sync(settings)
    assert (synced.messages, synced.left) == ([f"{spool.run_name}: delivered"], 0)
    found = history(settings, run_of(settings, spool.run_name).info.run_id, "loss")
    assert ([step for step, _ in found] == [0, 1, 2]) is guard


def test_two_deliverers_do_not_meet(settings: Settings) -> None:
    spool = spooled(settings, "two")
    with tracker.try_locked(spool.lock) as ours:
        assert ours
        synced = tracker.sync(settings)
        assert synced.left == 1
        assert "another process delivers" in synced.messages[0]
    assert tracker.sync(settings).left == 0


# -- MLflow down, slow, failing ---------------------------------------------------------------


class FaultProxy:
    """In front of a real server: `fault` is None, "down", "slow" or "500"."""

    def __init__(self, port: int) -> None:
        self.fault: str | None = None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if proxy.fault == "down":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                if proxy.fault == "slow":
                    time.sleep(4)
                if proxy.fault == "500":
                    self._answer(500, b"{}")
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", port)
                headers = {"content-type": self.headers.get("content-type", "application/json")}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                self._answer(answer.status, answer.read())

            do_POST = do_PUT = do_PATCH = do_GET

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def proxy(settings: Settings) -> Iterator[FaultProxy]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ui._server(settings, port, settings.root / "mlflow-ui.log") as server:
        ui._wait(server, port, settings.root / "mlflow-ui.log")
        made = FaultProxy(port)
        yield made
        made.server.shutdown()


def test_down_at_start_then_delivered_by_sync(settings: Settings, tiny_artifact: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    home = settings.root
    down = at(home, f"http://user:secret@127.0.0.1:{closed}")
    run = tracking.start(down, job("down", "down"), DATASET)
    for epoch in range(3):
        run.log({"loss": 1.0 / (epoch + 1)}, epoch)
    began = time.perf_counter()
    done = run.finish("finished", str(tiny_artifact))
    assert time.perf_counter() - began < 10.0
    assert (done.run_id, done.version) == (None, None)
    spool = f"{home}/outbox/{job('down').run_name}.jsonl"
    assert done.note == (
        f"MLflow (http://***@127.0.0.1:{closed}) has not taken everything: "
        f"no answer (NewConnectionError); the rest waits in {spool}, "
        "`hourglass models sync` delivers it"
    )
    assert "secret" not in done.note

    sync = ["models", "sync"]
    environment = {"HOURGLASS_HOME": str(home)}
    still = CliRunner().invoke(
        cli.app, sync, env=environment | {"MLFLOW_TRACKING_URI": down.mlflow_uri}
    )
    waits = f"{job('down').run_name}: no answer (NewConnectionError); the rest stays in {spool}\n"
    assert (still.exit_code, still.output) == (1, waits)
    printed = CliRunner().invoke(cli.app, sync, env=environment).output
    assert printed == f"{job('down').run_name}: delivered\n"
    assert CliRunner().invoke(cli.app, sync, env=environment).output == "nothing to deliver\n"
    recorded = run_of(settings, job("down").run_name)
    assert recorded.info.status == "FINISHED"
    assert [step for step, _ in history(settings, recorded.info.run_id, "loss")] == [0, 1, 2]
    assert registry.version(settings, "down", "1").aliases == ("challenger",)


def test_faults_during_a_run_lose_and_repeat_nothing(
    settings: Settings, proxy: FaultProxy, tiny_artifact: Path
) -> None:
    served = at(settings.root, proxy.uri)
    run = tracking.start(served, job("faults", "faults"), DATASET)
    slowest = 0.0
    for epoch, fault in enumerate([None, "down", "500", "slow", None, "500", "down", None]):
        proxy.fault = fault
        began = time.perf_counter()
        run.log({"loss": 1.0 / (epoch + 1), "holdout_mse": 2.0}, epoch)
        slowest = max(slowest, time.perf_counter() - began)
        time.sleep(0.5)
    assert slowest < 0.25
    done = run.finish("finished", str(tiny_artifact))
    assert done.note == f"recorded in MLflow ({proxy.uri}) as run {done.run_id}"
    assert history(settings, done.run_id, "loss") == [(e, 1.0 / (e + 1)) for e in range(8)]
    assert history(settings, done.run_id, "holdout_mse") == [(e, 2.0) for e in range(8)]
    assert done.version == "1"


def test_a_later_run_delivers_what_an_earlier_one_could_not(
    settings: Settings, proxy: FaultProxy
) -> None:
    served = at(settings.root, proxy.uri)
    proxy.fault = "500"
    first = tracking.start(served, job("earlier"), DATASET)
    first.log({"loss": 0.5}, 0)
    done = first.finish("finished", None)
    assert "has not taken everything: errors are its only answer" in done.note
    proxy.fault = None
    second = tracking.start(served, job("later"), DATASET)
    deadline = time.monotonic() + 20
    while Outbox(settings.root / "outbox", job("earlier").run_name).path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second.finish("finished", None)
    assert history(settings, run_of(settings, job("earlier").run_name).info.run_id, "loss") == [
        (0, 0.5)
    ]


# -- the spool --------------------------------------------------------------------------------


def test_a_torn_line_hides_nothing(tmp_path: Path) -> None:
    spool = Outbox(tmp_path, "torn")
    spool.append("begin", run="torn")
    with open(spool.path, "ab") as file:
        file.write(b'{"kind": "epo')  # killed while appending
    assert [event["kind"] for event in events(spool)] == ["begin"]
    spool.append("epoch", epoch=np.int64(1), metrics={"loss": np.float32(0.5)})
    assert [event["kind"] for event in events(spool)] == ["begin", "epoch"]
    assert events(spool)[1]["metrics"] == {"loss": 0.5}
    assert stat.S_IMODE(spool.path.stat().st_mode) == 0o600


def test_a_position_that_cannot_be_read_delivers_again_and_changes_nothing(
    settings: Settings,
) -> None:
    spool = spooled(settings, "position")
    tracker.drain(spool, settings)
    done = spool.path.with_suffix(".done")
    done.write_text("4x")  # half of a power cut
    assert len(events(spool)) == 4
    tracker.drain(spool, settings)
    found = history(settings, run_of(settings, spool.run_name).info.run_id, "loss")
    assert found == [(0, 1.0), (1, 0.5), (2, 1.0 / 3.0)]


def test_secrets_are_not_shown() -> None:
    assert redact("at postgresql://me:p%40ss@host/db, http://x:y@z") == (
        "at postgresql://***@host/db, http://***@z"
    )


# -- the registry -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(settings: Settings, save_artifact: Save, tmp_path_factory: Any) -> list[str]:
    """Two versions of `digits`; the digests."""
    folder = tmp_path_factory.mktemp("digits")
    digests = []
    for seed in (1, 2):
        digests.append(save_artifact(folder / str(seed), seed=seed))
        run = tracking.start(settings, job("digits", "digits", seed=seed), DATASET)
        assert run.finish("finished", str(folder / str(seed))).version == str(seed)
    return digests


def test_promote_says_who_was_champion(settings: Settings, digits: list[str]) -> None:
    runner, environment = CliRunner(), {"HOURGLASS_HOME": str(settings.root)}
    printed = [
        runner.invoke(cli.app, ["models", "promote", "digits", version], env=environment).output
        for version in ("1", "2")
    ]
    assert printed == [
        "digits version 1 is champion (no champion before)\n",
        "digits version 2 is champion (previously version 1)\n",
    ]
    found = {v.version: v.aliases for v in registry.versions(settings, "digits")}
    assert found == {"2": ("challenger", "champion"), "1": ()}
    listed = runner.invoke(cli.app, ["models", "list"], env=environment).output
    assert f"digits  2 (newest 2)  challenger 2, champion 2  {digits[1][:12]}" in listed
    assert "holdout_mse 0.25" in listed
    shown = runner.invoke(cli.app, ["models", "show", "digits", "--version", "1"], env=environment)
    assert digits[0] in shown.output


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/digit/1", "no registered model 'digit'; there is .*, did you mean 'digits'?"),
        ("models:/digits/7", "'digits' has no version 7; there is 2, 1"),
        (
            "models:/digits@champ",
            "'digits' has no alias 'champ'; there is challenger \\(version 2\\)",
        ),
        ("models:/digits", "write it as models:/NAME@ALIAS"),
        ("/nowhere", "/nowhere: no artifact there"),
    ],
)
def test_resolve_names_what_exists(
    settings: Settings, digits: list[str], uri: str, message: str
) -> None:
    with pytest.raises(RegistryError, match=message):
        registry.resolve(uri, settings)


def test_resolve_takes_files_by_name_into_a_private_folder(
    settings: Settings, digits: list[str]
) -> None:
    resolved = registry.resolve("models:/digits/1", settings)
    assert (resolved.name, resolved.version, resolved.digest) == ("digits", "1", digits[0])
    folder = Path(resolved.path)
    assert folder == settings.root / "models" / digits[0]
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "reference.safetensors",
    ]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert Predictor.load(resolved.path, resolved.digest).code_width == 5


def test_a_damaged_copy_is_replaced(settings: Settings, digits: list[str]) -> None:
    folder = Path(registry.resolve("models:/digits/1", settings).path)
    (folder / "model.safetensors").write_bytes(b"damaged")
    again = registry.resolve("models:/digits/1", settings)
    assert Predictor.load(again.path, again.digest)


@pytest.mark.parametrize(
    ("tag", "metrics"),
    [
        ("no JSON", {}),
        ("[1, 2]", {}),
        ('{"holdout_mse": "low", "loss": 1}', {"loss": 1.0}),
    ],
)
def test_metrics_that_somebody_wrote_otherwise_are_left_out(
    settings: Settings, digits: list[str], tag: str, metrics: dict[str, float]
) -> None:
    client = store.client(settings)
    reported = client.get_model_version("digits", "1").tags[store.METRICS_TAG]
    client.set_model_version_tag("digits", "1", store.METRICS_TAG, tag)
    try:
        assert registry.version(settings, "digits", "1").metrics == metrics
        environment = {"HOURGLASS_HOME": str(settings.root)}
        listed = CliRunner().invoke(cli.app, ["models", "show", "digits"], env=environment)
        assert listed.exit_code == 0
        assert digits[0][:12] in listed.output
    finally:
        client.set_model_version_tag("digits", "1", store.METRICS_TAG, reported)


def test_many_replicas_resolve_at_once(settings: Settings, digits: list[str]) -> None:
    shutil.rmtree(settings.root / "models", ignore_errors=True)
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            resolved = registry.resolve("models:/digits/2", forked(settings))
            os._exit(registry.artifact_problem(Path(resolved.path), digits[1]) is not None)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    assert sorted(p.name for p in (settings.root / "models").iterdir()) == [".lock", digits[1]]


def test_changed_files_are_neither_resolved_nor_promoted(
    settings: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    digest = save_artifact(tmp_path / "a", seed=3)
    run = tracking.start(settings, job("swapped", "swapped"), DATASET)
    run.finish("finished", str(tmp_path / "a"))
    location = store.client(settings).get_model_version_download_uri("swapped", "1")
    inside = Path(location.removeprefix("file://")) / store.INSIDE
    save_artifact(inside, seed=4)  # a good artifact, but not the registered one
    for use in (
        lambda: registry.resolve("models:/swapped/1", settings),
        lambda: registry.promote(settings, "swapped", "1"),
    ):
        with pytest.raises(ArtifactError, match=f"another digest; registered is {digest[:12]}"):
            use()
    assert registry.version(settings, "swapped", "1").aliases == ("challenger",)


def test_an_artifact_folder_resolves_to_itself(
    settings: Settings, save_artifact: Save, tmp_path: Path
) -> None:
    digest = save_artifact(tmp_path / "a")
    resolved = registry.resolve(str(tmp_path / "a"), settings)
    assert resolved == registry.Resolved(str(tmp_path / "a"), "tiny", None, digest)


def test_a_home_without_store_is_not_given_one(tmp_path: Path) -> None:
    empty = at(tmp_path / "empty")
    assert registry.names(empty) == []
    with pytest.raises(RegistryError, match=r"no model is registered in .* yet"):
        registry.resolve("models:/digits@champion", empty)
    assert not empty.root.exists()


def test_an_unreachable_server_is_named_without_its_password(tmp_path: Path) -> None:
    away = at(tmp_path, "http://user:secret@127.0.0.1:9")
    with pytest.raises(RegistryError, match=r"MLflow \(http://\*\*\*@127.0.0.1:9\)") as caught:
        registry.names(away)
    assert "secret" not in str(caught.value)


# -- MLflow's own way in ----------------------------------------------------------------------


LOAD = """
import sys, json
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event == "pickle.find_class" else None)
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = np.load(sys.argv[2], allow_pickle=False)
outputs = {o: model.predict(rows, params={"output": o}).tolist()
           for o in ("encode", "hash", "anomaly", "reconstruct")}
print(json.dumps({"outputs": outputs, "default": model.predict(rows).tolist(), "pickle": seen}))
"""


def test_mlflow_loads_and_answers_without_pickle(
    settings: Settings, digits: list[str], rows: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", rows[:9])
    run = subprocess.run(
        [sys.executable, "-c", LOAD, "models:/digits/2", str(tmp_path / "rows.npy")],
        env={**os.environ, "MLFLOW_TRACKING_URI": settings.mlflow_uri, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(run.stdout.splitlines()[-1])
    predictor = Predictor.load(registry.resolve("models:/digits/2", settings).path)
    for output, found in answer["outputs"].items():
        assert np.array_equal(np.asarray(found), getattr(predictor, output)(rows[:9])), output
    assert answer["default"] == answer["outputs"]["encode"]
    assert answer["pickle"] == []


def test_data_frames_by_name_and_unknown_outputs(
    settings: Settings, save_artifact: Save, rows: np.ndarray, tmp_path: Path
) -> None:
    from mlflow.pyfunc import load_model

    names = tuple(f"x{i}" for i in range(rows.shape[1]))
    save_artifact(tmp_path / "a", features={"vector": None, "columns": names})
    run = tracking.start(settings, job("frames", "frames"), DATASET)
    run.finish("finished", str(tmp_path / "a"))
    location = store.client(settings).get_model_version_download_uri("frames", "1")
    loaded = load_model(location)
    signature = loaded.metadata.signature
    assert signature.inputs.input_names() == list(names)
    assert signature.params.to_dict()[0]["default"] == "encode"
    assert (Path(location.removeprefix("file://")) / "input_example.json").exists()

    frame = pd.DataFrame(rows[:4], columns=names)[list(reversed(names))].assign(id=1)
    wanted = Predictor.load(str(tmp_path / "a")).anomaly(rows[:4])
    assert np.array_equal(loaded.predict(frame, params={"output": "anomaly"}), wanted)
    by_name = dict(zip(names, rows[:4].T, strict=True))
    assert np.array_equal(loaded.predict(by_name, params={"output": "anomaly"}), wanted)
    with pytest.raises(Exception, match="found 'scores', allowed are encode, hash, anomaly"):
        loaded.predict(frame, params={"output": "scores"})


def test_a_vector_model_takes_arrays_and_frames(
    settings: Settings, digits: list[str], rows: np.ndarray
) -> None:
    from mlflow.pyfunc import load_model

    location = store.client(settings).get_model_version_download_uri("digits", "1")
    loaded = load_model(location)
    wanted = loaded.predict(rows[:4])
    assert np.array_equal(loaded.predict(pd.DataFrame(rows[:4])), wanted)
    assert np.array_equal(loaded.predict(pd.DataFrame({"image": list(rows[:4])})), wanted)
    with pytest.raises(Exception, match="does not match expected"):
        loaded.predict(rows[:4, :3])


def test_the_logged_model_holds_no_pickle(settings: Settings, digits: list[str]) -> None:
    location = store.client(settings).get_model_version_download_uri("digits", "1")
    files = [p for p in Path(location.removeprefix("file://")).rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {"", ".yaml", ".txt", ".json", ".safetensors"}
    assert "requirements.txt" in {p.name for p in files}


# -- the page's server ------------------------------------------------------------------------


@pytest.mark.parametrize(("on_sigterm", "ended_by"), [("IGN", "KILL"), ("DFL", "TERM")])
def test_no_server_outlives_its_command(
    on_sigterm: str, ended_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not hear SIGTERM is killed; of one that does nothing is left to kill."""
    monkeypatch.setattr(ui, "STOP_S", 0.2 if on_sigterm == "IGN" else 20.0)
    code = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_{on_sigterm})"
    server = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('up', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"up\n"
    ui._stop(server)
    server.stdout.close()
    assert server.returncode == -getattr(signal, f"SIG{ended_by}")
    with pytest.raises(ProcessLookupError):  # what `_stop` meets after an obedient one
        os.killpg(server.pid, signal.SIGKILL)
