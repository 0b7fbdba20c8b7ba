"""A sweep in MLflow: one run for it and one per trial, each once and ended, even after kills."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hourglass import cli
from hourglass.config import files
from hourglass.config.tune import TuneJob
from hourglass.settings import Settings
from hourglass.tracking import mlflow as store
from hourglass.tracking import mlflow_runs, mlflow_trials, registry, tracker
from hourglass.tracking.outbox import Outbox
from hourglass.tuning import leaderboard, record
from hourglass.tuning import sweep as sweeps
from hourglass.tuning.leaderboard import Entry, Leaderboard, ranked
from hourglass.tuning.sweep import Swept
from hourglass.tuning.trial import Resources, Share

sys.path.insert(0, str(Path(__file__).parent))
from tracking_kit import DATASET, at

COUNTED = {"train_rows": 270, "holdout_rows": 30, "dropped_rows": 0, "imputed_cells": 0}
EPOCHS = 3
Save = Callable[..., str]


def sweep(name: str, register: str | None = None, **fields: Any) -> TuneJob:
    made = files.parse(
        {
            "kind": "tune",
            "name": name,
            "base": {
                "kind": "train",
                "name": "digits",
                "data": {"uri": "s3://key:secret@bucket/digits", "features": {"vector": "image"}},
                "model": {"network": {"widths": [7, 5]}},
                "track": {"experiment": "sweeps"} | ({"register": register} if register else {}),
            },
            "space": {
                "train.optimizer.lr": {"grid": [0.1, 0.2, 0.3, 0.4]},
                "model.code": {"grid": [{"kind": "plain"}, {"kind": "top_k", "k": 3}]},
            },
            **fields,
        }
    )
    assert isinstance(made, TuneJob)
    return made


@pytest.fixture
def trained(tmp_path: Path, save_artifact: Save) -> Callable[..., str]:
    """`trained(trial, ...)` puts an artifact with a history where the sweep has it; its digest."""

    def train(trial: str, seed: int = 0, final: float = 0.25) -> str:
        folder = tmp_path / "sweep" / "trials" / trial / "artifact"
        save_artifact(folder, seed=seed)
        manifest = folder / "manifest.json"
        tree = json.loads(manifest.read_text())
        tree["provenance"]["history"] = epochs(final)
        tree["metrics"] = {"holdout_mse": final}
        tree["job"] = {"kind": "train", "data": {"uri": "s3://key:secret@bucket/digits"}}
        manifest.write_text(json.dumps(tree))
        return registry.resolve(str(folder), at(tmp_path)).digest

    return train


def epochs(final: float) -> list[dict[str, float]]:
    return [{"epoch": float(e), "loss": final * (EPOCHS + 1 - e)} for e in range(1, EPOCHS + 1)]


def finished(trial: str, mse: float = 0.25, **fields: Any) -> Entry:
    given = {
        "trial": trial,
        "status": "finished",
        "values": {"train.optimizer.lr": 0.1, "model.code": {"kind": "top_k", "k": 3}},
        "holdout_mse": mse,
        "train_mse": mse / 2,
        "parameters": 100,
        "seconds": 2.0,
    }
    return Entry.model_validate({**given, **fields})


def lost(trial: str, status: str = "failed", **fields: Any) -> Entry:
    values = {"train.optimizer.lr": 0.4}
    return Entry.model_validate({"trial": trial, "status": status, "values": values, **fields})


def board(name: str, *entries: Entry) -> Leaderboard:
    return ranked(name, "holdout_mse", entries)


def runs(settings: Settings, name: str) -> tuple[list[Any], dict[str, list[Any]]]:
    """The runs of the sweep itself, and those of its trials by trial."""
    client = store.client(settings)
    experiment = client.get_experiment_by_name("sweeps").experiment_id
    found = client.search_runs([experiment], f"tags.`hourglass.sweep` = '{name}'")
    below: dict[str, list[Any]] = {}
    for run in found:
        if mlflow_trials.TRIAL_TAG in run.data.tags:
            below.setdefault(run.data.tags[mlflow_trials.TRIAL_TAG], []).append(run)
    return [run for run in found if mlflow_trials.TRIAL_TAG not in run.data.tags], below


def one(found: list[Any]) -> Any:
    assert len(found) == 1
    return found[0]


def history(settings: Settings, run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    found = store.client(settings).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in found)


def listed(settings: Settings, run_id: str) -> list[str]:
    return sorted(file.path for file in store.client(settings).list_artifacts(run_id))


CURVE = [(1, 0.75), (2, 0.5), (3, 0.25)]


# -- a sweep ----------------------------------------------------------------------------------


def test_all_ends_are_counted_even_if_there_are_none() -> None:
    """A later session must not leave the failures of an earlier one."""
    done = record._summary(board("counts", finished("aaaa")))["metrics"]
    assert [done[f"trials/{how}"] for how in ("finished", "stopped", "failed")] == [1.0, 0.0, 0.0]


def test_a_sweep_is_recorded_whole(
    settings: Settings, trained: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    digest = trained("aaaa")
    trained("bbbb", seed=1, final=0.5)
    recorder = record.start(settings, sweep("whole", "whole", metric="holdout_mse"), DATASET)
    before = time.time_ns() // 1_000_000
    recorder.ended(finished("aaaa"), str(folder / "trials/aaaa/artifact"))
    recorder.ended(finished("bbbb", 0.5), str(folder / "trials/bbbb/artifact"))
    recorder.ended(lost("cccc", reason="its process died 3 times; did it run out of memory?"), None)
    recorder.ended(lost("dddd", "stopped", epochs=2, holdout_mse=0.7), "", epochs(0.25)[:2])
    entries = [
        finished("aaaa", pca_mse=0.125),
        finished("bbbb", 0.5),
        lost("cccc", reason="its process died 3 times; did it run out of memory?"),
        lost("dddd", "stopped", epochs=2, holdout_mse=0.7),
        lost("", values={"train.optimizer.lr": 9}, reason="no such thing"),
        lost("eeee", reason="max_time_s has passed; the same command continues this trial"),
    ]
    (folder / "plots.html").write_text("<html></html>")
    done = recorder.finish(board("whole", *entries), "finished", str(folder), "whole")

    assert done.note == (
        f"recorded in MLflow (sqlite:///{settings.root}/mlflow.db) as run {done.parent_id}"
    )
    parents, below = runs(settings, "whole")
    parent = one(parents)
    assert (parent.info.run_id, parent.info.run_name) == (done.parent_id, "whole")
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["hourglass.best"] == "aaaa"
    assert parent.data.params["search.kind"] == "grid"
    assert json.loads(parent.data.params["space.train.optimizer.lr"]) == {
        "grid": [0.1, 0.2, 0.3, 0.4]
    }
    assert "base.model.network.widths" not in parent.data.params
    assert parent.data.metrics["leaderboard/holdout_mse"] == 0.25
    assert parent.data.metrics["leaderboard/pca_mse"] == 0.125
    assert [parent.data.metrics[f"trials/{how}"] for how in ("finished", "stopped", "failed")] == [
        2.0,
        1.0,
        3.0,
    ]
    assert parent.inputs.dataset_inputs[0].dataset.digest == "d" * 36
    assert listed(settings, done.parent_id or "") == sorted(["job.json", *record.FILES])
    job = store.client(settings).download_artifacts(done.parent_id, "job.json", str(tmp_path))
    assert "secret" not in Path(job).read_text()
    assert json.loads(Path(job).read_text())["base"]["model"] == {"network": {"widths": [7, 5]}}

    (invalid,) = below.keys() - {"aaaa", "bbbb", "cccc", "dddd"}  # eeee has not ended, so no run
    assert invalid.startswith("invalid-")
    assert done.run_ids == {trial: one(found).info.run_id for trial, found in below.items()}
    assert {trial: one(found).info.status for trial, found in below.items()} == {
        "aaaa": "FINISHED",
        "bbbb": "FINISHED",
        "cccc": "FAILED",
        "dddd": "KILLED",
        invalid: "FAILED",
    }
    assert {one(f).data.tags["mlflow.parentRunId"] for f in below.values()} == {done.parent_id}
    best = one(below["aaaa"])
    assert best.info.run_name == "aaaa"
    assert best.data.params == {
        "train.optimizer.lr": "0.1",
        "model.code.kind": "top_k",
        "model.code.k": "3",
    }
    assert best.data.metrics["leaderboard/holdout_mse"] == 0.25
    assert best.data.metrics["leaderboard/pca_mse"] == 0.125  # known only at the end of the sweep
    assert best.data.tags["hourglass.digest"] == digest
    assert best.data.tags["hourglass.artifact"] == f"{folder}/trials/aaaa/artifact"
    assert best.data.tags["hourglass.worse_than_pca"] == "true"
    assert history(settings, best.info.run_id) == CURVE
    assert best.info.end_time - best.info.start_time == 2000
    assert before <= best.info.end_time <= time.time() * 1000
    job = store.client(settings).download_artifacts(best.info.run_id, "job.json", str(tmp_path))
    assert json.loads(Path(job).read_text())["data"]["uri"] == "s3://***@bucket/digits"
    failed = one(below["cccc"])
    assert (
        failed.data.tags["hourglass.reason"]
        == "its process died 3 times; did it run out of memory?"
    )
    assert failed.data.params == {"train.optimizer.lr": "0.4"}
    assert history(settings, one(below["dddd"]).info.run_id) == CURVE[:2]
    assert not Outbox.all(settings.root / "outbox")

    version = registry.version(settings, "whole", done.version or "")
    assert (version.version, version.aliases) == ("1", ("challenger",))
    assert (version.digest, version.run_id) == (digest, best.info.run_id)
    assert version.metrics == {"holdout_mse": 0.25}

    assert done.board is not None
    assert done.board == leaderboard.load(str(folder))
    assert [entry.run_id for entry in done.board.entries] == [
        *(done.run_ids[trial] for trial in ("aaaa", "bbbb", "dddd", "cccc", invalid)),
        None,
    ]
    parquet = pq.read_table(folder / "leaderboard.parquet").column("run_id").to_pylist()
    assert parquet == [entry.run_id for entry in done.board.entries]
    csv = pa_csv.read_csv(folder / "leaderboard.csv").column("run_id").to_pylist()
    assert csv == [run_id or "" for run_id in parquet]


# -- once, not twice --------------------------------------------------------------------------


def test_a_second_session_continues_the_same_runs(
    settings: Settings, trained: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first session loses a trial, the second finishes it as the best, the third has none left."""
    folder, space = str(tmp_path / "sweep"), sweep("session", "session")
    trained("aaaa", final=0.5)
    recorder = record.start(settings, space, DATASET)
    recorder.ended(lost("bbbb", reason="it did not end"), None)
    first = recorder.finish(
        board("session", finished("aaaa", 0.5), lost("bbbb", reason="it did not end")),
        "finished",
        folder,
        "session",
    )
    # The end of aaaa was not reported: it ended when its artifact was written.
    parents, below = runs(settings, "session")
    written = (tmp_path / "sweep/trials/aaaa/artifact/manifest.json").stat().st_mtime
    assert abs(one(below["aaaa"]).info.end_time - 1000 * written) < 2
    assert one(below["bbbb"]).info.status == "FAILED"
    assert first.version == "1"

    better = trained("bbbb", seed=1)
    recorder = record.start(settings, space, DATASET)
    recorder.ended(finished("bbbb"), f"{folder}/trials/bbbb/artifact")
    last = board("session", finished("aaaa", 0.5), finished("bbbb"))
    second = recorder.finish(last, "finished", folder, "session")
    assert (second.parent_id, second.run_ids) == (first.parent_id, first.run_ids)
    parents, below = runs(settings, "session")
    assert one(parents).data.metrics["leaderboard/holdout_mse"] == 0.25
    assert one(parents).data.tags["hourglass.best"] == "bbbb"
    mended = one(below["bbbb"])
    assert (mended.info.status, mended.data.tags["hourglass.reason"]) == ("FINISHED", "")
    assert history(settings, mended.info.run_id) == CURVE
    assert second.version == "2"
    found = {v.version: (v.digest, v.aliases) for v in registry.versions(settings, "session")}
    assert found["2"] == (better, ("challenger",))
    assert found["1"][1] == ()

    written_again: list[str] = []
    monkeypatch.setattr(
        mlflow_trials.Trials, "_write", lambda _, child, *__: written_again.append(child)
    )
    recorder = record.start(settings, space, DATASET)
    third = recorder.finish(last, "finished", folder, "session")
    assert (third.run_ids, third.version) == (first.run_ids, "2")
    assert [child.run_id for child in written_again] == [first.parent_id]  # type: ignore[attr-defined]


@pytest.mark.parametrize("guard", [True, False])
def test_a_driver_killed_twice_leaves_one_ended_run_for_each_of_eight_trials(
    settings: Settings,
    trained: Callable[..., str],
    tmp_path: Path,
    guard: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between delivery and record of it, then before anything of a session was delivered."""
    name = f"killed-{guard}"
    folder = str(tmp_path / "sweep")
    trained("t0")
    for trial in range(1, 7):
        (tmp_path / "sweep/trials" / f"t{trial}").mkdir()
        os.symlink(
            tmp_path / "sweep/trials/t0/artifact", tmp_path / f"sweep/trials/t{trial}/artifact"
        )
    uri = [f"{folder}/trials/t{trial}/artifact" for trial in range(7)]

    class Silent:  # the process dies before its thread delivers
        writer = None

        def __init__(self, _: Settings, spool: str, begin: dict[str, Any]) -> None:
            self.spool = Outbox(settings.root / "outbox", spool)
            self.spool.append("begin", **begin)

        def put(self, kind: str, **fields: Any) -> None:
            self.spool.append(kind, **fields)

    with monkeypatch.context() as patch:
        patch.setattr(record, "Sender", Silent)
        recorder = record.start(settings, sweep(name), DATASET)
        for trial in range(3):
            recorder.ended(finished(f"t{trial}"), uri[trial])
        spool: Outbox = recorder._sender.spool  # type: ignore[attr-defined]
        third = [position for position, _ in spool.pending()][2]
        child = os.fork()
        if child == 0:
            mark = Outbox.mark
            Outbox.mark = lambda self, to: os._exit(9) if to == third else mark(self, to)  # type: ignore
            # The same store under another name: no connection of the parent's in a forked child.
            tracker.drain(spool, at(settings.root, f"sqlite:///{settings.root}/./mlflow.db"))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        recorder = record.start(settings, sweep(name), DATASET)
        for trial in (1, 3, 4):  # t1 is reported again, as by a session that ran it again
            recorder.ended(finished(f"t{trial}"), uri[trial])

    if not guard:  # negative control: without the look at the runs that exist, t1 has two
        monkeypatch.setattr(mlflow_trials.Trials, "_below", lambda _: iter(()))
    recorder = record.start(settings, sweep(name), DATASET)
    recorder.ended(finished("t5"), uri[5])
    recorder.ended(lost("t7", reason="its process died 3 times; did it run out of memory?"), None)
    every = [finished(f"t{trial}") for trial in range(7)]
    last = board(
        name, *every, lost("t7", reason="its process died 3 times; did it run out of memory?")
    )
    done = recorder.finish(last, "finished", folder, None)
    assert done.note.startswith("recorded in MLflow")

    parents, below = runs(settings, name)
    assert len(parents) == 1
    assert sorted(below) == [f"t{trial}" for trial in range(8)]
    assert (max(len(found) for found in below.values()) == 1) is guard
    ended = {run.info.status for found in below.values() for run in found}
    assert ended == {"FINISHED", "FAILED"}
    for trial in range(7):
        assert history(settings, below[f"t{trial}"][-1].info.run_id) == CURVE


def test_a_trial_that_was_half_written_is_completed(
    settings: Settings, trained: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with epochs that has not ended: the next attempt ends it and repeats nothing."""
    trained("aaaa")
    ends = store.client(settings).__class__.set_terminated
    faults = iter([True])

    def fail_once(self: Any, run_id: str, *args: Any, **kwargs: Any) -> None:
        if next(faults, False):
            raise ConnectionError("gone")
        ends(self, run_id, *args, **kwargs)

    written: list[tuple[str, str, int]] = []  # SQLite would hide what is written twice
    log = store.client(settings).__class__.log_batch

    def spy(self: Any, run_id: str, metrics: Any = (), **kwargs: Any) -> None:
        written.extend((run_id, metric.key, metric.step) for metric in metrics)
        log(self, run_id, metrics=metrics, **kwargs)

    monkeypatch.setattr(store.client(settings).__class__, "log_batch", spy)
    monkeypatch.setattr(store.client(settings).__class__, "set_terminated", fail_once)
    recorder = record.start(settings, sweep("middle"), DATASET)
    recorder.ended(finished("aaaa"), f"{tmp_path}/sweep/trials/aaaa/artifact")
    last = board("middle", finished("aaaa"))
    done = recorder.finish(last, "finished", str(tmp_path / "sweep"), None)
    _, below = runs(settings, "middle")
    assert next(faults, None) is None
    assert sorted(written) == sorted(set(written))
    assert (done.run_ids["aaaa"], "loss", 3) in written
    assert one(below["aaaa"]).info.status == "FINISHED"
    assert history(settings, done.run_ids["aaaa"]) == CURVE
    assert len(history(settings, done.run_ids["aaaa"], "leaderboard/holdout_mse")) == 1


@pytest.mark.parametrize("guard", [True, False])
def test_a_trial_trained_again_has_its_new_numbers(
    settings: Settings,
    trained: Callable[..., str],
    tmp_path: Path,
    guard: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after --fresh: equal numbers are not written again; others are, and are the latest."""
    if not guard:  # negative control: without the look at the steps, every number is there twice
        monkeypatch.setattr(mlflow_trials.Trials, "_steps", lambda *_: {})
    name, folder = f"anew-{guard}", str(tmp_path / "sweep")
    points = []
    for seed, final in ((1, 0.25), (2, 0.25), (3, 0.5)):
        digest = trained("aaaa", seed, final)
        recorder = record.start(settings, sweep(name), DATASET)
        entry = finished("aaaa", final, seconds=float(seed))
        recorder.ended(entry, f"{folder}/trials/aaaa/artifact")
        done = recorder.finish(board(name, entry), "finished", folder, None)
        points.append(history(settings, done.run_ids["aaaa"]))
    again = one(runs(settings, name)[1]["aaaa"])
    assert again.data.tags["hourglass.digest"] == digest
    assert again.data.metrics["loss"] == again.data.metrics["leaderboard/holdout_mse"] == 0.5
    assert points[0] == CURVE
    assert (points[1] == CURVE) is guard
    if guard:
        assert points[2] == sorted([*CURVE, (1, 1.5), (2, 1.0), (3, 0.5)])


def test_a_run_that_differs_from_the_file_is_noted(settings: Settings, tmp_path: Path) -> None:
    """MLflow's params never change: those that differ now are named."""
    first = record.start(settings, sweep("changed", max_trials=4), DATASET)
    first.finish(None, "failed", str(tmp_path), None)
    parent = one(runs(settings, "changed")[0])
    assert (parent.info.status, parent.data.params["max_trials"]) == ("FAILED", "4")
    assert mlflow_runs.CHANGED_TAG not in parent.data.tags

    space = {"train.optimizer.lr": {"grid": [0.1, 0.5]}}
    again = record.start(settings, sweep("changed", max_trials=4, space=space), DATASET)
    again.finish(None, "finished", str(tmp_path), None)
    parent = one(runs(settings, "changed")[0])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags[mlflow_runs.CHANGED_TAG] == "space.model.code, space.train.optimizer.lr"

    other = record.start(settings, sweep("changed"), {**DATASET, "digest": "e" * 64})
    other.finish(None, "finished", str(tmp_path), None)
    assert len(runs(settings, "changed")[0]) == 2  # other shards: nothing compares


def everything(settings: Settings, name: str) -> Any:
    """Everything that MLflow has of a sweep and of the model with its name."""
    parents, below = runs(settings, name)
    every = [*parents, *(run for found in below.values() for run in found)]
    client = store.client(settings)
    return (
        [run.to_dictionary() for run in every],
        [dict(version) for version in client.search_model_versions(f"name = '{name}'")],
        dict(client.get_registered_model(name).aliases),
    )


def test_a_complete_sweep_is_left_unchanged(
    settings: Settings, trained: Callable[..., str], tmp_path: Path
) -> None:
    """Nothing is left to train: the same command names the runs and changes nothing."""
    folder, space = str(tmp_path / "sweep"), sweep("ended", "ended")
    trained("aaaa")
    last = board("ended", finished("aaaa"))
    recorder = record.start(settings, space, DATASET)
    recorder.ended(finished("aaaa"), f"{folder}/trials/aaaa/artifact")
    first = recorder.finish(last, "finished", folder, "ended")
    before = everything(settings, "ended")
    again = record.start(settings, space, DATASET, ended=True)
    second = again.finish(last, "finished", folder, "ended")
    assert second == first
    assert everything(settings, "ended") == before
    # Negative control: as a session that trains, it is shown as running, and ends another time.
    third = record.start(settings, space, DATASET).finish(last, "finished", folder, "ended")
    assert third == first
    assert everything(settings, "ended") != before


def test_the_challenger_is_the_best_of_the_latest_session(
    settings: Settings, trained: Callable[..., str], tmp_path: Path
) -> None:
    """A trial that is the best, then is not, then is again: the sweep's alias returns to it."""
    folder, space = str(tmp_path / "sweep"), sweep("back", "back")
    trained("aaaa")
    trained("bbbb", seed=1)
    aliases = []
    for first, second in (("aaaa", "bbbb"), ("bbbb", "aaaa"), ("aaaa", "bbbb")):
        last = board("back", finished(first, 0.25), finished(second, 0.5))
        recorder = record.start(settings, space, DATASET)
        done = recorder.finish(last, "finished", folder, "back")
        assert done.registered is not None
        aliases.append((done.registered.version, done.registered.challenger))
    assert aliases == [("1", "1"), ("2", "2"), ("1", "1")]


@pytest.mark.parametrize("guard", [True, False])
def test_a_trials_run_is_on_the_sweeps_rows_and_shows_its_kept_weights(
    settings: Settings,
    trained: Callable[..., str],
    tmp_path: Path,
    guard: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It kept its second epoch; when trained again, its last one."""
    if not guard:  # negative control: MLflow shows the last epoch
        monkeypatch.setattr(mlflow_trials, "step_to_show", lambda *_: None)
    name, folder = f"shown-{guard}", tmp_path / "sweep"
    shown = []
    for seed, kept in ((1, {"epoch": 2.0, "loss": 0.5}), (2, {"epoch": 3.0, "loss": 0.125})):
        trained("aaaa", seed)
        manifest = folder / "trials/aaaa/artifact/manifest.json"
        tree = json.loads(manifest.read_text()) | {"metrics": kept}
        tree["provenance"]["history"][2]["loss"] = kept["loss"] if seed == 2 else 0.625
        manifest.write_text(json.dumps(tree))
        recorder = record.start(settings, sweep(name), DATASET)
        entry = finished("aaaa", seconds=float(seed))
        recorder.ended(entry, f"{folder}/trials/aaaa/artifact")
        recorder.finish(board(name, entry), "finished", str(folder), None)
        run = one(runs(settings, name)[1]["aaaa"])
        shown.append((run.data.metrics["loss"], run.data.metrics.get("epoch")))
        (dataset,) = run.inputs.dataset_inputs
        assert (dataset.dataset.name, dataset.dataset.digest) == ("digits", "d" * 36)
        assert json.loads(dataset.dataset.source) == {"uri": "/data/digits"}
    assert shown == ([(0.5, 2.0), (0.125, 3.0)] if guard else [(0.625, None), (0.125, None)])


def concluded(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    space: TuneJob,
    *entries: Entry,
    register: bool = True,
) -> tuple[str, ...]:
    """The messages of a sweep that found its trials on disk, but the first."""
    ended = board(space.name or "", *entries)

    def found(made: TuneJob, at: Settings, listener: Any, fresh: bool) -> Swept:
        listener.sweeping(len(entries), Resources(Share(1.0, 0.0, 1), 1, 1), DATASET)
        return Swept(ended, sweeps.folder_of(made, at), {}, {}, None)  # type: ignore[arg-type]

    monkeypatch.setattr(sweeps, "run", found)
    monkeypatch.setattr(sweeps.plots, "save", lambda *_: None)
    return sweeps.tune(space, settings, register=register).messages[1:]


def test_the_message_names_the_challenger_or_why_there_is_none(
    settings: Settings, save_artifact: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = f"{settings.runs_uri}/words/trials/aaaa/artifact"
    save_artifact(trial)
    best, job = finished("aaaa"), sweep("words", "words")
    of = "trial aaaa, the best by holdout_mse"
    message = concluded(settings, monkeypatch, job, best)
    assert message == (f"words version 1 is challenger: {of}",)
    assert concluded(settings, monkeypatch, job, best) == message
    assert concluded(settings, monkeypatch, job, best, register=False) == (
        "no trial was registered: --refit registers the run on all rows",
    )
    assert concluded(settings, monkeypatch, sweep("words"), best) == (
        "no trial was registered: base.track.register names no model",
    )
    assert concluded(settings, monkeypatch, job, lost("bbbb", reason="lost")) == (
        "no trial was registered as words: none finished",
    )


def test_a_sweep_that_mlflow_missed_is_registered_by_the_same_command(
    settings: Settings, save_artifact: Save, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    """Even after the outbox was lost."""
    save_artifact(f"{settings.runs_uri}/missed/trials/aaaa/artifact")
    best, job = finished("aaaa"), sweep("missed", "missed")
    down = at(settings.root, f"http://127.0.0.1:{closed_port}")
    assert concluded(down, monkeypatch, job, best) == (
        "no trial was registered as missed: the model of trial aaaa has not been delivered yet; run the "
        "same command again to register it",
    )
    (settings.root / "outbox" / f"missed@{'d' * 8}.jsonl").unlink()
    (message,) = concluded(settings, monkeypatch, job, best)
    assert message.startswith("missed version 1 is challenger: trial aaaa")
    parents, below = runs(settings, "missed")
    assert one(parents).info.status == one(below["aaaa"]).info.status == "FINISHED"
    (version,) = registry.versions(settings, "missed")
    assert version.aliases == ("challenger",)
    before = everything(settings, "missed")
    assert concluded(settings, monkeypatch, job, best) == (message,)
    assert everything(settings, "missed") == before

    def interrupted(made: TuneJob, at: Settings, listener: Any, fresh: bool) -> None:
        listener.sweeping(1, Resources(Share(1.0, 0.0, 1), 1, 1), DATASET)
        if trains:
            listener.loaded(DATASET | COUNTED)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "run", interrupted)
    for trains in (False, True):
        with pytest.raises(KeyboardInterrupt):
            sweeps.tune(job, settings)
        assert (everything(settings, "missed") == before) is not trains
    assert one(runs(settings, "missed")[0]).info.status == "FAILED"


# -- MLflow down, slow, refusing --------------------------------------------------------------


def test_nothing_is_asked_of_mlflow_while_trials_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def slow(*_: Any) -> None:
        asked.append(threading.current_thread().name)
        time.sleep(30)

    monkeypatch.setattr(mlflow_runs.MlflowWriter, "__init__", slow)
    monkeypatch.setattr(tracker, "FINISH_S", 0.3)
    began = time.perf_counter()
    recorder = record.start(at(tmp_path), sweep("fast"), DATASET)
    for trial in range(50):
        recorder.ended(finished(f"t{trial}"), f"{tmp_path}/nowhere")
    assert time.perf_counter() - began < 2.0
    began = time.perf_counter()
    done = recorder.finish(None, "finished", str(tmp_path), None)
    assert time.perf_counter() - began < 1.0  # both waits together
    assert "has not taken everything: it is too slow" in done.note
    assert (done.parent_id, done.run_ids, done.version) == (None, {}, None)
    assert set(asked) <= {"hourglass-tracking"}
    waiting = [event for _, event in Outbox(tmp_path / "outbox", f"fast@{'d' * 8}").pending()]
    assert [event["kind"] for event in waiting] == ["begin", *["trials"] * 50, "end"]


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


def test_down_then_delivered_by_sync(
    settings: Settings, trained: Callable[..., str], tmp_path: Path, closed_port: int
) -> None:
    folder = str(tmp_path / "sweep")
    trained("aaaa")
    down = at(settings.root, f"http://user:secret@127.0.0.1:{closed_port}")
    recorder = record.start(down, sweep("down", "down-sweep"), DATASET)
    recorder.ended(finished("aaaa"), f"{folder}/trials/aaaa/artifact")
    recorder.ended(lost("bbbb", reason="lost"), None)
    last = board("down", finished("aaaa"), lost("bbbb", reason="lost"))
    done = recorder.finish(last, "finished", folder, "down-sweep")
    spool = f"{settings.root}/outbox/down@{'d' * 8}.jsonl"
    assert done.note == (
        f"MLflow (http://***@127.0.0.1:{closed_port}) has not taken everything: "
        f"no answer (NewConnectionError); the rest waits in {spool}, "
        "`hourglass models sync` delivers it"
    )
    assert (done.parent_id, done.run_ids, done.version) == (None, {}, None)
    assert done.board is not None
    assert [entry.run_id for entry in done.board.entries] == [None, None]
    assert Path(spool).exists()

    environment = {"HOURGLASS_HOME": str(settings.root)}
    message = CliRunner().invoke(cli.app, ["models", "sync"], env=environment).output
    assert message == f"down@{'d' * 8}: delivered\n"
    assert not Path(spool).exists()
    parents, below = runs(settings, "down")
    assert one(parents).info.status == "FINISHED"
    assert {trial: one(found).info.status for trial, found in below.items()} == {
        "aaaa": "FINISHED",
        "bbbb": "FAILED",
    }
    assert "leaderboard.json" in listed(settings, one(parents).info.run_id)
    assert registry.version(settings, "down-sweep", "1").aliases == ("challenger",)


def test_a_missing_artifact_is_noted_and_blocks_nothing(settings: Settings, tmp_path: Path) -> None:
    """The artifact was removed before MLflow read it: it has the metrics, but no epochs and no model."""
    folder = tmp_path / "sweep"
    recorder = record.start(settings, sweep("gone", "gone"), DATASET)
    uri = f"{folder}/trials/aaaa/artifact"
    done = recorder.finish(board("gone", finished("aaaa")), "finished", str(folder), "gone")
    assert f"trial aaaa: {uri} is gone, its epochs too" in done.note
    assert "artifact refused:" in done.note
    assert done.version is None
    parents, below = runs(settings, "gone")
    assert one(parents).info.status == "FINISHED"
    assert one(below["aaaa"]).data.metrics["leaderboard/holdout_mse"] == 0.25
    assert "gone" not in registry.names(settings)
