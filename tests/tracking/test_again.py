"""A run that has ended is recorded and registered whole by the same command, wherever its driver died."""

import shutil
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from hourglass import artifact, run, tracking
from hourglass.config.train import TrainJob
from hourglass.errors import DataError
from hourglass.settings import Settings
from hourglass.tracking import mlflow, mlflow_runs, records, registry, tracker
from hourglass.tracking import mlflow as store
from hourglass.tracking.outbox import Outbox
from hourglass.training import launch
from hourglass.training.launch import Outcome

sys.path.insert(0, str(Path(__file__).parent))
from tracking_kit import DATASET, at, history, job, run_of, runs_of, trained

EPOCHS = [
    {"epoch": 1.0, "loss": 0.75, "holdout_mse": 0.5},
    {"epoch": 2.0, "loss": 0.5, "holdout_mse": 0.25},
    {"epoch": 3.0, "loss": 0.25, "holdout_mse": 0.375},
]
KEPT = EPOCHS[1]
"""The weights of the second epoch were the best on the held-out rows."""


class Killed(BaseException):
    """The driver dies: nobody catches it."""


class OnDisk:
    """An outbox of a driver that dies before its thread delivers anything."""

    writer = None

    def __init__(self, settings: Settings, name: str, begin: dict[str, Any]) -> None:
        self._spool = Outbox(settings.root / "outbox", name)
        self.put("begin", **begin)

    def put(self, kind: str, **fields: Any) -> None:
        self._spool.append(kind, **fields)

    def close(self) -> str:
        return ""


@pytest.fixture
def made(tmp_path: Path, save_artifact: Callable[..., str]) -> Path:
    """The artifact of a run of three epochs that kept the weights of the second."""
    save_artifact(tmp_path / "artifact")
    trained(tmp_path / "artifact", EPOCHS, KEPT)
    return tmp_path / "artifact"


@pytest.fixture
def finished_before(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `hourglass train` finds on the disk."""
    loaded = artifact.load(str(made))
    outcome = Outcome(str(made), loaded.manifest, loaded.digest, already=True)
    monkeypatch.setattr(launch, "train", lambda *_: outcome)


def live(settings: Settings, of: TrainJob, uri: Path) -> Outbox:
    """All that a run tells, none of it delivered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "Sender", OnDisk)
        reported = tracking.start(settings, of, DATASET)
        for record in EPOCHS:
            reported.log(record, int(record["epoch"]))
        reported.finish("finished", str(uri))
    return Outbox(settings.root / "outbox", of.run_name)


def everything(settings: Settings, of: TrainJob, name: str) -> dict[str, Any]:
    """All that MLflow has of a run and of a registered model."""
    recorded, client = run_of(settings, of.run_name), store.client(settings)
    models = client.search_logged_models([recorded.info.experiment_id], max_results=100)
    return {
        "run": recorded.to_dictionary(),
        "epochs": {key: history(settings, recorded.info.run_id, key) for key in ("loss", *KEPT)},
        "models": [
            (m.model_id, m.status, m.last_updated_timestamp)
            for m in models
            if m.source_run_id == recorded.info.run_id
        ],
        "versions": [dict(v) for v in client.search_model_versions(f"name = '{name}'")],
        "aliases": dict(client.get_registered_model(name).aliases),
    }


def assert_whole(settings: Settings, of: TrainJob, name: str) -> None:
    found = everything(settings, of, name)
    recorded = run_of(settings, of.run_name)
    assert recorded.info.status == "FINISHED"
    assert found["epochs"]["loss"] == [(1, 0.75), (2, 0.5), (3, 0.25), (4, 0.5)]
    assert found["epochs"]["holdout_mse"] == [(1, 0.5), (2, 0.25), (3, 0.375), (4, 0.25)]
    assert {key: recorded.data.metrics[key] for key in KEPT} == KEPT
    (dataset,) = recorded.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "d" * 36)
    assert [str(status) for _, status, _ in found["models"]] == ["READY"]
    assert [o.model_id for o in recorded.outputs.model_outputs] == [found["models"][0][0]]
    (version,) = registry.versions(settings, name)
    assert (version.aliases, version.metrics) == (("challenger",), KEPT)
    assert version.run_id == recorded.info.run_id
    waiting = [spool.run_name for spool in Outbox.all(settings.root / "outbox")]
    assert of.run_name not in waiting


KILLS = {
    "before the run": ("create_run", False),
    "after the run": ("create_run", True),
    "before its rows": ("log_inputs", False),
    "before an epoch": ("log_batch", False),
    "in a model": ("create_logged_model", True),
    "after its files": ("log_model_artifacts", True),
    "after the model": ("finalize_logged_model", True),
    "after its link": ("log_outputs", True),
    "after the name": ("create_registered_model", True),
    "after the version": ("create_model_version", True),
    "after the alias": ("set_registered_model_alias", True),
    "after the tag": ("set_tag", True),
    "before the end": ("set_terminated", False),
    "after the end": ("set_terminated", True),
    "before the spool is cleared": ("clear", False),
    "after the spool is cleared": ("clear", True),
}
LOST = ("after the run", "in a model", "after the version", "after the alias", "before the end")
"""Where the spool is lost, too."""


@pytest.mark.parametrize(
    ("point", "spool_lost"), [*((point, False) for point in KILLS), *((p, True) for p in LOST)]
)
def test_killed_while_mlflow_is_told(
    settings: Settings,
    made: Path,
    finished_before: None,
    point: str,
    spool_lost: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once the same command makes it whole, the next one changes nothing."""
    name = f"{point}-{spool_lost}".replace(" ", "-")
    of = job(name, name, epochs=3)
    spool = live(settings, of, made)
    method, after = KILLS[point]
    owner = Outbox if method == "clear" else store.client(settings).__class__
    real = getattr(owner, method)

    def dies(*args: Any, **kwargs: Any) -> None:
        if after:
            real(*args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, dies)
        with pytest.raises(Killed):
            tracker.drain(spool, settings)
    if spool_lost:
        shutil.rmtree(spool.path.parent)
    done = run.train(of, settings).record
    assert done.note.startswith("recorded in MLflow (")
    assert done.registered == tracking.Registered(name, "1", challenger="1")
    assert_whole(settings, of, name)
    before = everything(settings, of, name)
    assert run.train(of, settings).record == done
    assert everything(settings, of, name) == before


@pytest.mark.parametrize("reported", ["nothing", "epochs", "the artifact", "all"])
@pytest.mark.parametrize("guard", [True, False])
def test_killed_while_the_spool_is_written(
    settings: Settings,
    made: Path,
    finished_before: None,
    reported: str,
    guard: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"{reported}-{guard}".replace(" ", "-")
    of = job(name, name, epochs=3)
    spool = live(settings, of, made)
    lines = spool.path.read_bytes().splitlines(keepends=True)
    kept = {"nothing": 0, "epochs": 3, "the artifact": 5, "all": 6}[reported]
    spool.path.write_bytes(b"".join(lines[:kept]))
    if not kept:
        spool.path.unlink()
    if not guard:  # negative control: a finished run is not told again, as it was
        assert tracker.sync(settings).left == 0
        assert (name in registry.names(settings)) == (kept > 4)
        assert len(runs_of(settings, of.run_name)) == (kept > 0)
        return
    run.train(of, settings)
    assert_whole(settings, of, name)


def test_a_rebuilt_record_has_the_times_of_the_artifact(
    settings: Settings, made: Path, finished_before: None
) -> None:
    of = job("times", "times")
    done = run.train(of, settings).record
    info = run_of(settings, of.run_name).info
    written = 1000 * (made / artifact.MANIFEST).stat().st_mtime
    assert abs(info.end_time - written) < 2
    assert info.end_time - info.start_time == 9000
    found = store.client(settings).get_metric_history(done.run_id, "loss")
    assert [m.timestamp - info.start_time for m in found] == [3000, 6000, 9000, 9000]


def test_mlflow_was_down_at_the_end(
    settings: Settings, made: Path, finished_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again while it is still down, the command says so, and what waits is delivered once."""
    of = job("away", "away", epochs=3)
    live(settings, of, made)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        down = at(settings.root, f"http://127.0.0.1:{probe.getsockname()[1]}")
        for _ in range(2):
            done = run.train(of, down).record
            assert "has not taken everything: no answer" in done.note
            assert (done.run_id, done.registered) == (None, None)
    assert run.train(of, settings).record.version == "1"
    assert_whole(settings, of, "away")


def test_another_name_to_register_as(
    settings: Settings, made: Path, finished_before: None, save_artifact: Any, tmp_path: Path
) -> None:
    """The finished run becomes a version of that model, too, and moves no challenger of the first."""
    first = run.train(job("renamed", "first-name"), settings).record
    assert first.registered == tracking.Registered("first-name", "1", challenger="1")
    other = run.train(job("renamed", "second-name"), settings).record
    assert other.registered == tracking.Registered("second-name", "1", challenger="1")
    assert other.run_id == first.run_id

    save_artifact(tmp_path / "other", seed=1)
    newer = tracking.start(settings, job("newer", "first-name"), DATASET)
    assert newer.finish("finished", str(tmp_path / "other")).version == "2"
    back = run.train(job("renamed", "first-name"), settings).record
    assert back.registered is not None
    assert back.registered.summary == "first-name version 1; challenger is version 2"
    unnamed = run.train(job("renamed"), settings).record
    assert (unnamed.run_id, unnamed.registered) == (first.run_id, None)


@pytest.mark.parametrize("guard", [True, False])
def test_a_finished_run_takes_the_alias_from_nobody(
    settings: Settings,
    made: Path,
    finished_before: None,
    save_artifact: Any,
    tmp_path: Path,
    guard: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody made another version challenger, newer or older; a finished run leaves it there."""
    name = f"alias-{guard}"
    save_artifact(tmp_path / "older", seed=1)
    older = tracking.start(settings, job(f"older-{guard}", name), DATASET)
    older.finish("finished", str(tmp_path / "older"))
    of = job(f"own-{guard}", name)
    assert run.train(of, settings).record.version == "2"
    store.client(settings).set_registered_model_alias(name, "challenger", "1")
    if not guard:  # negative control: nothing says that the run had registered it
        run_id = run_of(settings, of.run_name).info.run_id
        store.client(settings).delete_tag(run_id, mlflow_runs.REGISTERED_TAG)
    again = run.train(of, settings).record.registered
    assert again == tracking.Registered(name, "2", challenger="1" if guard else "2")


def test_a_version_that_was_deleted_is_registered_anew(
    settings: Settings, made: Path, finished_before: None
) -> None:
    of = job("deleted", "deleted")
    run.train(of, settings)
    store.client(settings).delete_model_version("deleted", "1")
    again = run.train(of, settings).record.registered
    assert again is not None
    assert again.challenger == again.version
    assert len(registry.versions(settings, "deleted")) == 1


@pytest.mark.parametrize("killed", [None, "create_model_version", "set_tag"])
@pytest.mark.parametrize("guard", [True, False])
def test_a_version_that_is_made_anew_takes_the_alias_from_nobody(
    settings: Settings,
    made: Path,
    finished_before: None,
    save_artifact: Any,
    tmp_path: Path,
    killed: str | None,
    guard: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody deleted it after another run's became challenger."""
    name = f"gone-{killed}-{guard}"
    of, client = job(f"own-{name}", name), store.client(settings)
    run.train(of, settings)
    save_artifact(tmp_path / "other", seed=1)
    tracking.start(settings, job(f"other-{name}", name), DATASET).finish(
        "finished", str(tmp_path / "other")
    )
    client.delete_model_version(name, "1")
    if not guard:  # negative control: nothing says that it was this artifact
        client.delete_tag(run_of(settings, of.run_name).info.run_id, records.DIGEST_TAG)
    if killed:
        real = getattr(client.__class__, killed)

        def dies(*args: Any, **kwargs: Any) -> None:
            real(*args, **kwargs)
            raise Killed

        spool = live(settings, of, made)
        with monkeypatch.context() as patch:
            patch.setattr(client.__class__, killed, dies)
            with pytest.raises(Killed):
                tracker.drain(spool, settings)
    again = run.train(of, settings).record.registered
    assert again == tracking.Registered(name, "3", challenger="2" if guard else "3")


def test_a_run_that_was_trained_anew_becomes_challenger_though_its_version_was_deleted(
    settings: Settings, made: Path, finished_before: None, save_artifact: Any, tmp_path: Path
) -> None:
    of = job("anew", "anew")
    run.train(of, settings)
    save_artifact(tmp_path / "other", seed=1)
    other, new = tmp_path / "other", tmp_path / "new"
    tracking.start(settings, job("anew-other", "anew"), DATASET).finish("finished", str(other))
    store.client(settings).delete_model_version("anew", "1")
    save_artifact(new, seed=2)
    found = tracking.start(settings, of, DATASET).finish("finished", str(new)).registered
    assert found == tracking.Registered("anew", "3", challenger="3")


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("kept", [EPOCHS[1], EPOCHS[2]], ids=["an earlier epoch", "the last epoch"])
def test_a_logged_model_has_the_metrics_of_its_weights(
    settings: Settings,
    made: Path,
    finished_before: None,
    kept: dict[str, float],
    guard: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the run's own history has each of them once."""
    trained(made, EPOCHS, kept)
    if not guard:  # negative control: MLflow takes none from the run by itself
        monkeypatch.setattr(mlflow, "measure", lambda *_: None)
    of = job(f"measured-{guard}-{kept['epoch']:g}", epochs=3)
    for _ in range(2):
        run_id = run.train(of, settings).record.run_id or ""
        (found,) = store.client(settings).get_run(run_id).outputs.model_outputs
        shown = store.client(settings).get_logged_model(found.model_id).metrics or ()
        assert {metric.key: metric.value for metric in shown} == (kept if guard else {})
        assert len(shown) == (len(kept) if guard else 0)
        last = [(4, kept["loss"])] if kept is EPOCHS[1] else []
        assert history(settings, run_id, "loss") == [(1, 0.75), (2, 0.5), (3, 0.25), *last]


def test_what_a_run_shows_is_of_the_kept_weights(
    settings: Settings, made: Path, finished_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without a step after the last one MLflow shows the last epoch."""
    monkeypatch.setattr(records, "step_to_show", lambda *_: None)
    of = job("shown")
    run.train(of, settings)
    assert run_of(settings, of.run_name).data.metrics["holdout_mse"] == 0.375
    monkeypatch.undo()
    reported = tracking.again(settings, of, str(made), artifact.load(str(made)).manifest)
    reported.finish("finished", str(made))
    assert run_of(settings, of.run_name).data.metrics == KEPT


def test_the_last_epoch_kept_is_told_once(settings: Settings, made: Path) -> None:
    trained(made, EPOCHS[:2], KEPT)
    of = job("last")
    reported = tracking.again(settings, of, str(made), artifact.load(str(made)).manifest)
    done = reported.finish("finished", str(made))
    assert history(settings, done.run_id or "", "holdout_mse") == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize(
    ("known", "step"),
    [
        ({}, 2),
        ({1: 0.5, 2: 0.25}, None),
        ({1: 0.5, 2: 0.25, 3: 0.375}, 4),
        ({1: 0.5, 2: 0.25, 3: 0.375, 4: 0.25}, None),
        ({1: 0.25, 9: float("nan")}, 10),
    ],
)
def test_the_step_that_mlflow_shows(known: dict[int, float], step: int | None) -> None:
    assert records.step_to_show(known, 0.25, 2) == step


@pytest.mark.parametrize("guard", [True, False])
def test_the_same_job_on_other_rows_is_another_run(
    settings: Settings, guard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after --fresh: epochs and rows of both stay apart, also in one spool."""
    if not guard:  # negative control: the steps are known, so the other epochs are lost
        monkeypatch.setattr(mlflow_runs, "_data", lambda _: "rows")
    of = job(f"fresh-{guard}")
    with monkeypatch.context() as patch:
        patch.setattr(tracker, "Sender", OnDisk)
        for digest, loss in (("d" * 64, 0.5), ("e" * 64, 0.75)):
            reported = tracking.start(settings, of, DATASET | {"digest": digest})
            reported.log({"epoch": 1.0, "loss": loss}, 1)
            reported.finish("failed", None)
    spool = Outbox(settings.root / "outbox", of.run_name)
    second = [position for position, _ in spool.pending()][1]
    mark = Outbox.mark

    def dies(self: Outbox, position: int) -> None:
        mark(self, position)
        if position == second:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "mark", dies)
        with pytest.raises(Killed):
            tracker.drain(spool, settings)
    tracker.drain(spool, settings)  # it goes on with an end, which is of the first
    found = runs_of(settings, of.run_name)
    reported_on = [
        (
            [i.dataset.digest[0] for i in recorded.inputs.dataset_inputs],
            history(settings, recorded.info.run_id, "loss"),
            recorded.info.status,
        )
        for recorded in found
    ]
    if guard:
        assert reported_on == [(["d"], [(1, 0.5)], "FAILED"), (["e"], [(1, 0.75)], "FAILED")]
    else:
        assert [epochs for _, epochs, _ in reported_on] == [[(1, 0.5)]]


@pytest.mark.parametrize("guard", [True, False])
def test_the_lock_is_held_until_all_is_recorded(
    settings: Settings, finished_before: None, guard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command, given while MLflow is told, is told who does that."""
    of, refused = job(f"locked-{guard}"), []
    finish = tracker.RunRecorder.finish

    def meanwhile(self: Any, *reported: Any) -> Any:
        monkeypatch.setattr(tracker.RunRecorder, "finish", finish)
        try:
            run.train(of, settings)
        except DataError as error:
            refused.append(str(error))
        return finish(self, *reported)

    monkeypatch.setattr(tracker.RunRecorder, "finish", meanwhile)
    if not guard:  # negative control
        monkeypatch.setattr(run, "locked", lambda *_: nullcontext())
    run.train(of, settings)
    assert len(refused) == guard
    assert all("another process trains this run (pid " in printed for printed in refused)


@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("other", ["works", "was faster"])
def test_another_process_delivers_the_events(
    settings: Settings,
    made: Path,
    finished_before: None,
    other: str,
    guard: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `hourglass models sync` does: that is waited for, and the end is the same."""
    name = f"{other}-{guard}".replace(" ", "-")
    of, drain = job(name, name, epochs=3), tracker.drain
    busy = iter([True] * 3 if other == "works" else [])

    def shared(spool: Outbox, *rest: Any) -> None:
        if spool.run_name == of.run_name:
            if next(busy, False):
                raise tracker.AlreadyDelivering("another process delivers it")
            drain(spool, settings)
        drain(spool, *rest)

    monkeypatch.setattr(tracker, "drain", shared)
    monkeypatch.setattr(tracker, "RETRY_S", 0.0)
    if not guard:  # negative control: nobody looks what the other one made
        monkeypatch.setattr(mlflow_runs.MlflowWriter, "recall", lambda *_: None)
    done = run.train(of, settings).record
    assert next(busy, "none left") == "none left"
    if guard:
        run_id = run_of(settings, of.run_name).info.run_id
        assert done.note == f"recorded in MLflow ({settings.mlflow_uri}) as run {run_id}"
        assert done.registered == tracking.Registered(name, "1", challenger="1")
        assert_whole(settings, of, name)
    else:
        assert (done.run_id, done.registered) == (None, None)


def test_who_delivers_for_too_long_is_named(
    settings: Settings, finished_before: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = job("long")
    monkeypatch.setattr(tracker, "FINISH_S", 0.2)
    spool = Outbox(settings.root / "outbox", of.run_name)
    spool.append("epoch", epoch=1, metrics={})
    with tracker.try_locked(spool.lock) as ours:
        assert ours
        note = run.train(of, settings).record.note
    assert note == (
        f"MLflow ({settings.mlflow_uri}) has not taken everything: another process delivers "
        f"{spool.path}; the rest waits in {spool.path}, `hourglass models sync` delivers it"
    )
    spool.path.unlink()


@pytest.mark.parametrize("guard", [True, False])
def test_the_runs_of_trials_that_another_process_delivered(
    settings: Settings, guard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are on the leaderboard all the same."""
    drain, name = tracker.drain, f"swept-{guard}"

    def shared(spool: Outbox, *rest: Any) -> None:
        if spool.run_name == name:
            drain(spool, settings)
        drain(spool, *rest)

    monkeypatch.setattr(tracker, "drain", shared)
    if not guard:  # negative control
        monkeypatch.setattr(mlflow_runs.MlflowWriter, "recall", lambda *_: None)
    begin = {"run": name, "experiment": "digits", "hourglass": "1", "dataset": DATASET}
    outbox = tracker.Sender(settings, name, {**begin, "job": job(name).model_dump(mode="json")})
    reported = {"status": "failed", "values": {}, "metrics": {}, "tags": {}, "seconds": 1.0}
    where = {"artifact": None, "history": [], "ended_ms": 2000}
    for trial in ("a", "b"):
        outbox.put("trials", trials=[{"trial": trial, **reported, **where}])
        assert outbox.settle()
    outbox.put("end", status="finished")
    assert outbox.close().startswith("recorded")
    assert outbox.writer is not None
    assert sorted(outbox.writer.run_ids) == (["a", "b"] if guard else [])
