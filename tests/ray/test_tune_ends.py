"""Early ends of trials and sweeps, and adaptive searches, on a cluster of two CPUs."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from hourglass import artifact, run
from hourglass.config.files import dump
from hourglass.config.tune import TuneJob
from hourglass.settings import Settings
from hourglass.tracking import mlflow
from hourglass.tuning.space import points

sys.path.insert(0, str(Path(__file__).parent))
from cluster_kit import Counting, processes
from sweep_kit import (
    Events,
    assert_like_in_process,
    assert_ranked,
    fitted,
    job,
    least,
    tune,
    untimed,
)

LR = "train.optimizer.lr"
RATES = {LR: {"loguniform": [1e-5, 0.1]}}
RANDOM = {"kind": "random", "seed": 1}


def test_asha_stops_the_worst_at_its_rungs_and_remembers(home: Path, shards: Path) -> None:
    made = job(
        shards,
        RATES,
        search=RANDOM,
        max_trials=8,
        train={"epochs": 16},
        scheduler={"kind": "asha", "grace_epochs": 2, "reduction_factor": 2},
    )
    first, events = Events(), Events()
    board = tune(made, home / "asha", first)
    stopped = [entry for entry in board.entries if entry.status == "stopped"]
    finished = [entry for entry in board.entries if entry.status == "finished"]
    assert len(stopped) + len(finished) == 8
    assert len(stopped) >= 3
    assert {entry.epochs for entry in stopped} <= {2, 4, 8}  # grace * reduction_factor^n
    assert {entry.epochs for entry in finished} == {16}
    assert all(entry.holdout_mse and entry.rank is None for entry in stopped)
    assert first.epochs == {entry.trial: entry.epochs for entry in board.entries}
    assert untimed(tune(made, home / "asha", events)) == untimed(board)
    assert (events.endings, len(events.before)) == ([], 8)
    alone = made.model_copy(update={"concurrency": 1})
    assert untimed(tune(alone, home / "asha-alone")) == untimed(board)
    every = made.model_dump(by_alias=True) | {"scheduler": {"kind": "none"}, "concurrency": 1}
    wider = type(made).model_validate(every)
    assert all(e.status == "finished" for e in tune(wider, home / "asha").entries)


def test_median_stops_a_trial_worse_than_the_others(home: Path, shards: Path) -> None:
    made = job(
        shards,
        {LR: {"grid": [0.01, 1e-6, 0.02, 0.05, 2e-6]}},
        train={"epochs": 8},
        scheduler={"kind": "median", "grace_epochs": 2, "least_trials": 3},
    )
    board = tune(made, home / "median")
    *others, last = board.entries
    assert (last.status, last.epochs, last.values) == ("stopped", 2, {LR: 2e-6})
    assert [entry.status for entry in others] == ["finished"] * 4  # too few came before the second
    alone = made.model_copy(update={"concurrency": 1})
    assert untimed(tune(alone, home / "median-alone")) == untimed(board)


def test_optuna_learns_and_concurrency_changes_nothing(home: Path, shards: Path) -> None:
    def made(concurrency: int) -> TuneJob:
        return job(
            shards,
            RATES,
            search={"kind": "optuna", "seed": 1, "startup": 4, "together": 2},
            max_trials=10,
            concurrency=concurrency,
        )

    board = tune(made(2), home / "optuna")
    rates = [entry.values[LR] for entry in sorted(board.entries, key=lambda e: e.rank or 0)]
    assert len(rates) == 10
    assert rates[0] > 0.01  # the best end of the range, of five decades
    assert untimed(tune(made(1), home / "one")) == untimed(board)


def test_patience_ends_the_sweep_at_the_same_trial(home: Path, shards: Path) -> None:
    made = job(shards, {LR: {"grid": [0.05, 1e-3, 1e-4, 1e-5, 0.06, 0.07]}}, stop={"patience": 3})
    board = tune(made, home / "patience")
    assert [entry.values[LR] for entry in board.entries] == [0.05, 1e-3, 1e-4, 1e-5]
    without = job(shards, {LR: {"grid": [0.05, 1e-3, 1e-4, 1e-5, 0.06, 0.07]}}, concurrency=1)
    assert len(tune(without, home / "patience").entries) == 6  # the protection switched off


def test_time_ends_a_session_and_the_next_resumes(home: Path, shards: Path) -> None:
    rates, long = {LR: {"grid": [0.01, 0.02]}}, {"epochs": 300}
    made = job(shards, rates, concurrency=1, max_time_s=8, train=long)
    hasty = made.model_copy(update={"max_time_s": 2})  # too little for 600 epochs on any machine
    first = tune(hasty, home / "time")
    reasons = {entry.reason for entry in first.entries if entry.status == "failed"}
    # The second is where it was if it began just before the end.
    assert reasons
    assert reasons <= {
        "max_time_s has passed; the same command continues this trial",
        "max_time_s passed before the trial completed another epoch; raise it, or the same command may "
        "never get further",
    }
    for _ in range(30):
        board = tune(made, home / "time")
        if all(entry.status == "finished" for entry in board.entries):
            break
    assert [entry.status for entry in board.entries] == ["finished"] * 2
    assert_ranked(
        board,
        {p.trial: least(assert_like_in_process(home / "time", p, shards)) for p in points(made)},
    )


def test_four_trials_of_two_workers_end_on_two_cpus(home: Path, shards: Path) -> None:
    """One of them loses its process, and what its workers held is free for the next."""
    events, train = Events(), {"epochs": 30}
    rates = {LR: {"grid": [1e-3, 2e-3, 3e-3, 4e-3]}}
    made = job(shards, rates, workers_per_trial=2, train=train)
    killer = Killing(home / "workers" / "runs" / "grid" / "trials")
    killer.start()
    with Counting("ray::ImplicitFunc") as seen:
        board = tune(made, home / "workers", events)
    killer.join()
    assert killer.killed == 1
    assert len(seen) < 5  # of the five that began, some used a process again
    assert events.resources is not None
    assert (events.resources.at_once, events.resources.share.workers) == (1, 2)
    assert [entry.status for entry in board.entries] == ["finished"] * 4
    assert len(events.begun) == 5
    deadline = time.monotonic() + 10  # Ray reports what was freed a little later
    while ray.available_resources().get("CPU") != 2.0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2.0
    found = artifact.load(events.artifacts[0])
    assert found.manifest.job["scale"]["workers"] == 2
    (point,) = [point for point in points(made) if point.values == {LR: 4e-3}]
    (two,) = [entry for entry in board.entries if entry.values == {LR: 4e-3}]
    alone = least(fitted(point, shards))
    assert two.holdout_mse == pytest.approx(alone, rel=0.2)  # noise is per worker
    assert two.holdout_mse != alone


def test_a_population_continues_from_its_best(home: Path, shards: Path) -> None:
    made = job(
        shards,
        RATES,
        search=RANDOM,
        max_trials=4,
        train={"epochs": 4},
        scheduler={"kind": "pbt", "every_epochs": 2},
    )
    events = Events()
    board = tune(made, home / "pbt", events)
    assert (events.most, len(events.endings), len(board.entries)) == (8, 8, 4)
    first, second = events.endings[:4], events.endings[4:]
    assert {(entry.status, entry.epochs) for entry in first} == {("stopped", 2)}
    assert {(entry.status, entry.epochs) for entry in second} == {("finished", 4)}
    worst = max(first, key=lambda entry: entry.holdout_mse or 0)
    assert worst.values not in [entry.values for entry in second]
    best = min(entry.holdout_mse or 1 for entry in first)
    assert all((entry.holdout_mse or 1) < (worst.holdout_mse or 0) for entry in second)
    assert sum((entry.holdout_mse or 1) < best for entry in second) >= 2  # it and its child
    again = Events()
    assert untimed(tune(made, home / "pbt", again)) == untimed(board)
    assert again.endings == []
    assert not list((home / "pbt" / "runs" / "grid" / "trials").glob("*/checkpoints"))


def begin(file: Path, home: Path) -> "subprocess.Popen[str]":
    """`hourglass tune` in a process of its own, with a cluster of its own."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "HOURGLASS_", "MLFLOW_"))
    }
    environment |= {"HOURGLASS_HOME": str(home), "HOURGLASS_TEMP_DIR": str(home / "c")}
    return subprocess.Popen(
        [sys.executable, "-c", "from hourglass.cli import main; main()", "tune", str(file)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def artifacts(home: Path) -> dict[str, int]:
    """When each trial's artifact was written."""
    found = home.glob("runs/grid/trials/*/artifact/manifest.json")
    return {path.parts[-3]: path.stat().st_mtime_ns for path in found}


def kill_a_trial_then_the_driver(driver: "subprocess.Popen[str]", home: Path, done: int) -> None:
    """SIGKILL to a trial's process, then, when `done` artifacts are there, to the driver."""
    deadline = time.monotonic() + 120
    family, before = psutil.Process(driver.pid), {*processes("ray::ImplicitFunc")}
    while driver.poll() is None and time.monotonic() < deadline:
        if list(home.glob("runs/grid/trials/*/checkpoints/*/COMMIT.json")):
            trial = {*processes("ray::ImplicitFunc")} - before
            if trial:
                psutil.Process(trial.pop()).kill()
                break
        time.sleep(0.02)
    while driver.poll() is None and len(artifacts(home)) < done and time.monotonic() < deadline:
        time.sleep(0.02)
    assert driver.poll() is None, driver.communicate()[1]
    left = family.children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    for process in left:  # its cluster would end by itself, later
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_ray_11(home: Path, shards: Path, tmp_path: Path) -> None:
    """Trials killed three times and drivers twice: all eight end, once, with the same best trial."""
    rates = {LR: {"grid": [0.01 * n for n in range(1, 9)]}}
    made = job(shards, rates, pack="never", train={"epochs": 80})
    own = Path(tempfile.mkdtemp(dir=home))
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(dump(made)))
    seen: dict[str, int] = {}
    for done in (2, 4):
        kill_a_trial_then_the_driver(begin(file, own), own, done)
        written = artifacts(own)
        assert done <= len(written) < 8, "killed too late for the test to prove anything"
        assert seen.items() <= written.items()  # none was trained again
        seen = written
    killer = Killing(own / "runs" / "grid" / "trials")
    killer.start()
    settings = Settings(home=own)
    board = run.tune(made, settings).board
    killer.join()
    assert killer.killed
    assert seen.items() <= artifacts(own).items()
    assert [entry.status for entry in board.entries] == ["finished"] * 8
    assert_ranked(
        board, {p.trial: least(assert_like_in_process(own, p, shards)) for p in points(made)}
    )
    client = mlflow.client(settings)
    (experiment,) = client.search_experiments(filter_string="name = 'hourglass'")
    runs = client.search_runs([experiment.experiment_id])
    trials = [one for one in runs if "mlflow.parentRunId" in one.data.tags]
    assert sorted(one.data.tags["hourglass.trial"] for one in trials) == sorted(artifacts(own))
    assert {one.info.status for one in trials} == {"FINISHED"}
    assert {entry.run_id for entry in board.entries} == {one.info.run_id for one in trials}
    (parent,) = [one for one in runs if one not in trials]
    assert {one.data.tags["mlflow.parentRunId"] for one in trials} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"


class Killing(threading.Thread):
    """kill -9 of a trial's process once it has committed a checkpoint of its own."""

    def __init__(self, trials: Path) -> None:
        super().__init__(daemon=True)
        self.trials, self.killed = trials, 0
        self.before = {path.name for path in trials.glob("*/checkpoints/*")}

    def run(self) -> None:
        deadline = time.monotonic() + 60
        while not self.killed and time.monotonic() < deadline:
            time.sleep(0.02)
            committed = self.trials.glob("*/checkpoints/*/COMMIT.json")
            if {path.parent.name for path in committed} - self.before:
                for pid in list(processes("ray::ImplicitFunc"))[:1]:
                    psutil.Process(pid).kill()
                    self.killed += 1
