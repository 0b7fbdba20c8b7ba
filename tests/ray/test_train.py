"""Training on a real cluster of two CPUs: it ends, with the bits that were promised, or says why."""

import asyncio
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from hourglass import artifact, run, storage
from hourglass.config.files import parse
from hourglass.config.train import TrainJob
from hourglass.errors import DataError, HourglassError, SpecError, TrainingError
from hourglass.inference.predictor import Predictor
from hourglass.report import report
from hourglass.settings import Settings
from hourglass.tracking import mlflow
from hourglass.training import launch
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.events import ERROR_TYPES, EventChannel, Subscription
from hourglass.training.launch import Outcome

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from cluster_kit import ROWS, Counting, in_process, processes, project, write, write_shards
from training_kit import same_bits, timeless


@pytest.fixture(scope="module")
def home(s3: str) -> Iterator[Path]:
    """The cluster knows the bucket: its variables were there first."""
    with project() as folder:
        yield folder


@pytest.fixture
def shards(home: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=home))
    yield write_shards(folder)
    shutil.rmtree(folder)


def job(
    shards: Path | str, workers: int, cache: str = "memory", model: Any = None, **train: Any
) -> TrainJob:
    made = parse(
        {
            "kind": "train",
            "name": "small",
            "data": {
                "uri": str(shards),
                "features": {"vector": "x"},
                "cache": cache,
                "shuffle_rows": 70,
            },
            "model": model
            or {
                "network": {"kind": "dense", "widths": [6, 3], "activation": "tanh"},
                "corruption": {"kind": "gaussian", "sd": 0.05},
                "penalties": [{"kind": "sparsity_kl", "rho": 0.1, "beta": 0.01}],
            },
            "train": {"epochs": 3, "batch_size": 48, "seed": 3} | train,
            "scale": {"workers": workers},
        }
    )
    assert isinstance(made, TrainJob)
    return made


@dataclass
class Recorder:
    """A listener that remembers."""

    notes: list[str] = field(default_factory=list)
    records: list[dict[str, float]] = field(default_factory=list)
    dataset: dict[str, Any] = field(default_factory=dict)

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None:
        self.dataset = dataset

    def note(self, text: str) -> None:
        self.notes.append(text)

    def epoch(self, record: dict[str, float]) -> None:
        self.records.append(record)


def train(made: TrainJob, home: Path, received: Any = None) -> Outcome:
    """The run of `made` in a project folder of its own name."""
    return launch.train(made, Settings(home=home), received or Recorder())


def weights(outcome: Outcome) -> dict[str, np.ndarray]:
    module = artifact.load(outcome.uri).module
    return {name: value.numpy() for name, value in module.state_dict().items()}


def history(outcome: Outcome) -> list[dict[str, float]]:
    return timeless(outcome.manifest.provenance["history"])


def test_two_workers_stream_pretrain_and_share_a_batch_wide_code(home: Path, shards: Path) -> None:
    """Phases are told, dead units counted, the sensitivity check recorded, and the artifact loads."""
    sparse = {
        "network": {"kind": "dense", "widths": [6, 4], "code_activation": "relu"},
        "code": {"kind": "batch_top_k", "k": 1},
        "penalties": [{"kind": "aux_k", "dead_after_steps": 5}],
    }
    received = Recorder()
    made = job(
        shards, 2, "stream", model=sparse, epochs=2, phases=[{"kind": "greedy", "epochs": 1}]
    )
    outcome = train(made, home / "phases", received)
    reported = [note for note in received.notes if note.startswith("phase 1 (greedy), layer ")]
    assert [note.partition(": error ")[0].partition(", ")[2] for note in reported] == [
        "layer 1 of 2, epoch 1/1",
        "layer 2 of 2, epoch 1/1",
    ]
    assert weights(outcome)["batch_threshold.threshold"] > 0
    assert [record["epoch"] for record in received.records] == [1, 2]
    assert all("dead_units" in record for record in received.records)
    assert received.dataset["cached"] is False
    sensitivity = outcome.manifest.provenance["sensitivity"]
    assert [one["hyperparameter"] for one in sensitivity] == [
        "model.code.k",
        "model.penalties.0.weight",
        "model.penalties.0.dead_after_steps",
    ]
    assert all(one["moved"] > 0 for one in sensitivity)


def test_a_shape_that_is_not_the_rows_is_told_before_they_are_read(
    home: Path, shards: Path
) -> None:
    model = {"network": {"kind": "lstm", "shape": [5, 2], "code": 2}}
    received = Recorder()
    with pytest.raises(SpecError, match=r"shape \[5, 2\] has 10 features, the rows have 8"):
        train(job(shards, 1, model=model), home / "shape", received)
    assert received.dataset == {}


def assert_bits_of_the_loop_without_ray(
    made: TrainJob, shards: Path, outcome: Outcome, received: Recorder
) -> None:
    alone = in_process(made, shards)
    alone.fit()
    expected = {name: v.numpy() for name, v in alone.state.module.state_dict().items()}
    assert same_bits(weights(outcome), expected)
    assert history(outcome) == timeless(alone.records) == timeless(received.records)
    assert received.dataset["train_rows"] + received.dataset["holdout_rows"] == len(ROWS)
    assert not outcome.already
    run = Path(outcome.uri).parent
    assert sorted(path.name for path in run.iterdir()) == ["artifact", "checkpoints"]


def test_one_worker_streams_the_bits_of_the_loop_without_ray(home: Path, shards: Path) -> None:
    made, received = job(shards, 1, "stream"), Recorder()
    outcome = train(made, home / "stream", received)
    assert_bits_of_the_loop_without_ray(made, shards, outcome, received)


class KillingTheController(Recorder):
    """kill -9 of Ray Train's controller after the fifth epoch."""

    def epoch(self, record: dict[str, float]) -> None:
        super().epoch(record)
        if record["epoch"] == 5:
            (controller,) = processes("ray::TrainController")
            psutil.Process(controller).kill()


def test_a_lost_controller_keeps_no_cpu_and_the_same_command_resumes(
    home: Path, shards: Path
) -> None:
    """And what it finishes then is finished: for these shards, for good."""
    made = job(shards, 1, epochs=100)
    with pytest.raises(TrainingError) as lost:
        train(made, home / "lost", KillingTheController())
    assert str(lost.value) == (
        "training failed: the process of Ray Train's controller was lost; out of memory? What was "
        "committed is kept; the same command resumes"
    )
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU") != 2.0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2.0
    received = Recorder()
    outcome = train(made, home / "lost", received)
    assert sum(note.startswith("resumed at step ") for note in received.notes) == 1
    assert received.dataset["cached"] is True
    assert_bits_of_the_loop_without_ray(made, shards, outcome, received)

    started, received = time.monotonic(), Recorder()
    again = train(made, home / "lost", received)
    assert time.monotonic() - started < 2
    assert (again.already, again.digest) == (True, outcome.digest)
    assert received.records == []
    write(shards / "part-1.parquet", ROWS[:200] + 1)
    with pytest.raises(DataError) as error:
        train(made, home / "lost")
    assert str(error.value) == (
        f"{outcome.uri}: run {made.run_name} is finished, but on other shards; retrain with --fresh"
    )


class Interrupting(Recorder):
    """Ctrl-C after the third epoch."""

    def epoch(self, record: dict[str, float]) -> None:
        super().epoch(record)
        if record["epoch"] == 3:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def test_an_interrupted_run_leaves_no_worker_on_a_cluster_that_goes_on(
    home: Path, shards: Path
) -> None:
    """As in a notebook, where nobody shuts Ray down; what Ctrl-C does there stays as it was."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(job(shards, 1, epochs=4000), home / "interrupted", Interrupting())
    assert signal.getsignal(signal.SIGINT) is before
    deadline = time.monotonic() + 10
    while (
        train_workers() or ray.available_resources().get("CPU") != 2.0
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes("ray::TrainController")
    assert not train_workers()
    assert ray.available_resources()["CPU"] == 2.0


def test_an_unfinished_run_refuses_other_shards(home: Path, shards: Path) -> None:
    made = job(shards, 1)
    folder = home / "unfinished" / "runs" / made.run_name / "checkpoints"
    alone = in_process(made, shards)
    Checkpoints(str(folder), made.run_name, "0" * 64, 1).save(alone.state)
    with pytest.raises(DataError, match="the shards changed since this run began") as error:
        train(made, home / "unfinished")
    assert "(manifest 000000000000 then, " in str(error.value)


def test_a_missing_cell_is_refused_with_file_row_group_and_column(home: Path, shards: Path) -> None:
    rows = ROWS[:200].copy()
    rows[130, 2] = np.nan
    write(shards / "part-1.parquet", rows)
    with pytest.raises(DataError) as error:
        train(job(shards, 2), home / "missing")
    assert str(error.value) == (
        f"{shards}/part-1.parquet: row group 2, row 10, column 'x[2]': found nan (1 such rows in "
        "these 60); `missing: error` allows finite numbers only. Set data.missing to `mean` or "
        "`drop_row`"
    )


ENSEMBLE = {"epochs": 24, "seeds": 3, "checkpoint_every_steps": 3}


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> tuple[run.Trained, Settings]:
    """An ensemble of three members on two workers, recorded; and where."""
    rows = home / "undisturbed-rows"
    rows.mkdir()
    settings = Settings(home=home / "undisturbed")
    return run.train(job(write_shards(rows), 2, **ENSEMBLE), settings), settings


def test_an_ensemble_on_two_workers(home: Path, undisturbed: tuple[run.Trained, Settings]) -> None:
    """Its members are counted, averaged, recorded and reported; the second is the run of its own seed."""
    trained, settings = undisturbed
    loaded = artifact.load(trained.outcome.uri)
    found = loaded.manifest
    assert found.ensemble is not None
    records = found.provenance["history"]
    assert [(r["member"], r["epoch"]) for r in records] == [
        (m, e) for m in (1, 2, 3) for e in range(1, 25)
    ]
    best = [min(r["holdout_mse"] for r in records if r["member"] == m) for m in (1, 2, 3)]
    assert found.ensemble.primary == best.index(min(best)) + 1
    assert found.metrics["holdout_mse"] == min(best)

    rows = home / "undisturbed-rows"
    solo = train(job(rows, 2, **ENSEMBLE | {"seeds": 1, "seed": 4}), home / "solo")
    by_number = dict(zip([found.ensemble.primary, *found.ensemble.others],
                         [loaded.module, *loaded.others], strict=True))  # fmt: skip
    mine = {name: value.numpy() for name, value in by_number[2].state_dict().items()}
    assert same_bits(mine, weights(solo))

    predictor = Predictor(loaded)
    held = predictor.score(ROWS).score
    own = [((r.output_BF - r.clean_BF) ** 2).double().mean(1).numpy()
           for r in (member(torch.from_numpy(ROWS)) for member in predictor.members)]  # fmt: skip
    np.testing.assert_allclose(held, np.mean(own, axis=0), rtol=1e-5)

    assert trained.record is not None
    metrics = mlflow.client(settings).get_run(trained.record.run_id).data.metrics
    assert metrics["rank_agreement"] == found.metrics["rank_agreement"]
    assert metrics["holdout_mse"] == min(best)
    assert [metrics[f"member_{m}/holdout_mse"] for m in (1, 2, 3)] == [
        record["holdout_mse"] for record in records[23::24]
    ]
    assert "member" not in metrics
    page = home / "ensemble.html"
    done = report(trained.outcome.uri, settings, rows=str(rows), out=str(page))
    assert "Members" in done.sections
    assert (
        "correlation between the members' scores of the held-out rows is "
        f"{found.metrics['rank_agreement']:.3f};"
    ) in page.read_text().replace("&#x27;", "'")
    again = run.train(job(rows, 2, **ENSEMBLE), settings)
    assert again.outcome.already
    assert again.record == trained.record
    recorded = mlflow.client(settings).get_run(again.record.run_id)
    assert recorded.data.metrics == metrics
    (found_rows,) = recorded.inputs.dataset_inputs
    data = found.provenance["dataset"]["digest"]
    assert (found_rows.dataset.name, found_rows.dataset.digest) == (rows.name, data[:36])
    assert json.loads(found_rows.dataset.source) == {"uri": str(rows)}


def train_workers() -> set[int]:
    """Processes of this cluster's train workers."""
    return processes("ray::RayTrainWorker")


def test_a_run_that_diverges_stops_all_workers_once(home: Path, shards: Path) -> None:
    """NUM-05: the message reaches the caller, and Ray Train does not try it again."""
    made = job(shards, 2, optimizer={"kind": "sgd", "lr": 1e30})
    with Counting("ray::RayTrainWorker") as seen, pytest.raises(TrainingError) as error:
        train(made, home / "diverges")
    words = str(error.value)
    assert words.startswith("stopped at step ")
    assert ": worker 0: " in words
    assert words.endswith("lower the learning rate or check the rows")
    assert len(seen) == 2


@pytest.mark.parametrize("kind", ERROR_TYPES.values())
def test_an_error_comes_to_the_caller_as_what_it_is(home: Path, kind: type[HourglassError]) -> None:
    with Subscription(Recorder()) as publisher:
        assert publisher.failure() is None
        publisher.fail(kind("words"))
        publisher.fail(TrainingError("a later one"))
        found = publisher.failure()
    assert (type(found), str(found)) == (kind, "words")


def kill_the_channel() -> None:
    """kill -9 of the channel, which Ray then restarts."""
    (killed,) = processes("ray::EventChannel")
    psutil.Process(killed).kill()


def test_events_on_a_killed_channel_arrive_once_and_in_order(home: Path) -> None:
    received = Recorder()
    subscription = Subscription(received)
    with subscription as publisher:
        assert publisher.failure() is None  # the channel is up
        with subscription._delivering:  # nothing is taken from it
            for epoch in range(1, 6):
                publisher.send("epoch", {"epoch": epoch})
            publisher.send("note", "between")
            time.sleep(0.5)
            kill_the_channel()
            publisher.send("note", "while it is down")
        assert publisher.undelivered() == []
    assert [record["epoch"] for record in received.records] == [1, 2, 3, 4, 5]
    assert received.notes == ["between", "while it is down"]


def test_a_channel_that_does_not_wait_for_the_subscriber_loses_events(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what the test above would see."""

    class Forgetful(EventChannel.__ray_metadata__.modified_class):  # type: ignore[name-defined,misc]
        async def post(self, event: Any) -> None:
            self.task = asyncio.ensure_future(super().post(event))

    Forgetful.__name__ = "EventChannel"
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Forgetful)
    monkeypatch.setattr("hourglass.training.events.EventChannel", actor)
    received = Recorder()
    subscription = Subscription(received)
    with subscription as publisher:
        publisher.failure()
        with subscription._delivering:
            publisher.send("note", "taken by the listener, which waits")
            time.sleep(0.5)
            publisher.send("note", "lost")
            time.sleep(0.5)
            kill_the_channel()
        publisher.failure()
    assert "lost" not in received.notes


def test_a_worker_returns_the_events_that_no_channel_took(home: Path) -> None:
    """An error among them is that of the run."""
    received = Recorder()
    subscription = Subscription(received)
    with subscription as publisher:
        publisher.send("note", "first")
        assert publisher.undelivered() == []
        ray.kill(subscription._channel)
        publisher.send("note", "second")
        publisher.fail(TrainingError("stopped at step 7"))
        kept = publisher.undelivered()
        assert [(kind, payload) for _, kind, payload in kept] == [
            ("note", "second"),
            ("failed", ("TrainingError", "stopped at step 7")),
        ]
        subscription.deliver(kept)
        subscription.deliver(kept)
        assert str(subscription.failure) == "stopped at step 7"
    assert received.notes == ["first", "second"]


def test_the_channel_is_on_the_node_of_the_listener(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nowhere else: no other machine that is lost takes it away."""
    asked: list[Any] = []

    class Asked:
        @staticmethod
        def options(**how: Any) -> Any:
            asked.append(how["scheduling_strategy"])
            return EventChannel.options(**how)

    monkeypatch.setattr("hourglass.training.events.EventChannel", Asked)
    with Subscription(Recorder()) as publisher:
        assert publisher.failure() is None
    (place,) = asked
    assert (place.node_id, place.soft) == (ray.get_runtime_context().get_node_id(), False)


@pytest.mark.parametrize("error", [OSError("no space left"), SystemExit("no space left")])
def test_an_error_of_the_listener_costs_no_event_and_is_raised_at_the_end(
    home: Path, error: BaseException
) -> None:
    class Full(Recorder):
        def epoch(self, record: dict[str, float]) -> None:
            super().epoch(record)
            if record["epoch"] == 1:
                raise error

    def publish(received: Full) -> None:
        with Subscription(received) as publisher:
            for epoch in (1, 2, 3):
                publisher.send("epoch", {"epoch": epoch})

    received = Full()
    with pytest.raises(type(error), match="no space left"):
        publish(received)
    assert [record["epoch"] for record in received.records] == [1, 2, 3]


def test_an_error_of_the_channel_is_raised_at_the_end(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(EventChannel.__ray_metadata__.modified_class):  # type: ignore[name-defined,misc]
        async def take(self, *_: Any) -> list[Any]:
            raise KeyError("a mistake of ours")

    Broken.__name__ = "EventChannel"
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Broken)
    monkeypatch.setattr("hourglass.training.events.EventChannel", actor)
    monkeypatch.setattr("hourglass.training.events.TIMEOUT_S", 5.0)

    def publish(subscription: Subscription) -> None:
        with subscription as publisher:
            publisher.send("note", "kept")
            subscription.deliver(publisher.undelivered())

    received = Recorder()
    with pytest.raises(KeyError, match="a mistake of ours"):
        publish(Subscription(received))
    assert received.notes == ["kept"]


def test_a_stop_sent_while_the_channel_is_down_ends_the_run_with_its_error(
    home: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate climbs until the loss is NaN; MLflow has every epoch before that."""
    made = job(
        shards,
        1,
        model={"network": {"kind": "dense", "widths": [6, 3], "activation": "linear"}},
        epochs=60,
        optimizer={"kind": "sgd", "lr": 20.0},
        schedule={"kind": "constant", "warmup_steps": 400},
    )
    received: list[float] = []

    def epoch(self: Any, record: dict[str, float]) -> None:
        received.append(record["epoch"])
        if record["epoch"] == 3:
            kill_the_channel()

    monkeypatch.setattr(run.TrainProgress, "epoch", epoch)
    settings = Settings(home=home / "down")
    with pytest.raises(TrainingError) as stopped:
        run.train(made, settings)
    words = re.fullmatch(
        r"stopped at step \d+ \(epoch (\d+)\): worker \d: .* is NaN or infinite\. The last "
        r"checkpoint is kept; lower the learning rate or check the rows",
        str(stopped.value),
    )
    assert words
    whole = list(range(1, int(words[1])))
    assert len(whole) > 5
    assert received == whole
    client = mlflow.client(settings)
    (experiment,) = client.search_experiments(filter_string="name = 'hourglass'")
    (recorded,) = client.search_runs([experiment.experiment_id])
    assert recorded.info.status == "FAILED"
    reported = client.get_metric_history(recorded.info.run_id, "loss")
    assert sorted(metric.step for metric in reported) == whole


class Unlinking(Recorder):
    """Takes a shard away once the rows have been counted."""

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None:
        (Path(str(job.data.uri)) / "part-1.parquet").unlink()


def test_an_error_of_one_worker_ends_the_others_too(home: Path, shards: Path) -> None:
    """A worker alone with its error must not leave its peer waiting in a collective."""
    started = time.monotonic()
    with pytest.raises(DataError) as error:
        train(job(shards, 2, "stream"), home / "unlinked", Unlinking())
    assert str(error.value).startswith(f"{shards}/part-1.parquet: ")
    assert time.monotonic() - started < 120


class Killing(Recorder):
    """RAY-05: kill -9 of one of the two workers when certain epochs have been heard."""

    def __init__(self, epochs: list[tuple[int, int]]) -> None:
        super().__init__()
        self.epochs, self.killed = epochs, []

    def epoch(self, record: dict[str, float]) -> None:
        super().epoch(record)
        come = self.epochs and (record["member"], record["epoch"]) >= self.epochs[0]
        if come and len(train_workers()) == 2:
            self.epochs.pop(0)
            time.sleep(random.random() * 0.05)
            pid = random.choice(sorted(train_workers()))
            psutil.Process(pid).kill()
            self.killed.append(pid)


def test_three_kills_change_no_bit_and_a_run_lives_in_s3(
    home: Path, shards: Path, s3: str, undisturbed: tuple[run.Trained, Settings]
) -> None:
    """Shards, checkpoints and artifact in the bucket: the ensemble above, killed in both members."""
    for path in sorted(shards.iterdir()):
        storage.write(f"{s3}/rows/{path.name}", path.read_bytes())
    made = job(f"{s3}/rows", 2, **ENSEMBLE)
    received = Killing([(1, 3), (2, 3), (2, 12)])
    settings = Settings(home=home / "s3", runs=f"{s3}/runs")
    outcome = launch.train(made, settings, received)
    assert outcome.uri == f"{s3}/runs/{made.run_name}/artifact"
    assert len(received.killed) == 3
    resumed = [note.partition(" at step ")[0] for note in received.notes if " at step " in note]
    assert resumed == ["member 1: resumed", "member 2: resumed", "member 2: resumed"]
    assert received.notes.count("member 1: its 24 epochs were done before") == 2
    assert [(r["member"], r["epoch"]) for r in received.records] == [
        (member, epoch) for member in (1, 2, 3) for epoch in range(1, 25)
    ]
    disturbed, whole = artifact.load(outcome.uri), artifact.load(undisturbed[0].outcome.uri)
    for mine, its in zip(
        (disturbed.module, *disturbed.others), (whole.module, *whole.others), strict=True
    ):
        assert same_bits(mine.state_dict(), its.state_dict())
    assert disturbed.manifest.calibration == whole.manifest.calibration
    assert history(outcome) == history(undisturbed[0].outcome)
    kept = storage.names(f"{s3}/runs/{made.run_name}")
    assert sorted(kept) == ["artifact", "checkpoints"], kept
    assert not (home / "s3" / "runs").exists()
    assert launch.train(made, settings, Recorder()).already
