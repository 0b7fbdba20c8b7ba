"""`train --fresh`: what is there stays until the new artifact takes its place, whatever ends the run.

The run is that of every worker; only its processes, and the reading of rows, are left out.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hourglass import artifact, storage
from hourglass.config.train import TrainJob
from hourglass.data import stats
from hourglass.data.dataset import Dataset
from hourglass.data.schema import FeatureSchema
from hourglass.errors import (
    ClusterError,
    DataError,
    HourglassError,
    SpecError,
    TrainingError,
    WriteError,
)
from hourglass.settings import Settings
from hourglass.training import launch
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.complete import Run, complete, run_uri

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import CPU, Stop, generated, held_out, job, memory_loader

ROWS = generated(300, 6)


class Recorder:
    """A listener that ends the run at an epoch, if there is one to end it at."""

    def __init__(self, end_at: float | None = None) -> None:
        self.end_at, self.prepared_at, self.resumed_at = end_at, 0, 0

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None:
        self.prepared_at += 1

    def note(self, text: str) -> None: ...

    def epoch(self, record: dict[str, float]) -> None: ...

    def send(self, kind: str, payload: Any) -> None:
        if kind == "resumed":
            self.resumed_at = payload["epoch"]
        if kind == "epoch" and payload["epoch"] == self.end_at:
            raise Stop


class Home:
    """A project folder with two shards, and runs of one job in it."""

    def __init__(self, folder: Path) -> None:
        self.shards, self.settings = folder / "rows", Settings(home=folder / "home")
        self.shards.mkdir()
        self.write(ROWS)
        tree = job(epochs=4).model_dump(mode="json", by_alias=True)
        tree["data"]["uri"] = str(self.shards)
        self.job = TrainJob.model_validate(tree)
        self.run = Path(run_uri(self.job, self.settings))

    def write(self, rows: np.ndarray) -> None:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        pq.write_table(
            pa.table({"x": vectors}), self.shards / "a.parquet", write_page_checksum=True
        )

    def train(self, fresh: bool = False, end_at: float | None = None) -> Recorder:
        received = Recorder(end_at)
        self.outcome = launch.train(self.job, self.settings, received, fresh)
        return received

    def digest(self) -> str | None:
        """Of the artifact that loads; None where there is none."""
        uri = str(self.run / "artifact")
        return artifact.load(uri).digest if storage.exists(f"{uri}/manifest.json") else None

    def names(self) -> list[str]:
        return storage.names(str(self.run))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The workers are this process, and rows are those of ROWS."""

    def prepare(job: TrainJob, dataset: Dataset) -> Any:
        digest = dataset.manifest.digest
        record = {"digest": digest}

        def run(made: TrainJob, uri: str) -> Run:
            measured = stats.measure(ROWS[~held_out(len(ROWS))])
            features = FeatureSchema("x", (), ROWS.shape[1], "float32")
            return Run(made, features, measured, uri, digest, {"dataset": record})

        return SimpleNamespace(run=run, record=record)

    def distribute(run: Run, data: Any, resources: Any, listener: Recorder) -> None:
        run.checkpoints.check()
        complete(run, memory_loader(run.job, ROWS), SingleProcessGroup(), CPU, listener.send)

    monkeypatch.setattr(launch, "prepare", prepare)
    monkeypatch.setattr(launch, "distribute", distribute)
    monkeypatch.setattr(launch, "worker_resources", lambda scale, note: None)
    return Home(tmp_path)


def refusing(kind: type[HourglassError]) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise kind("refused")

    return refuse


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("open_dataset", DataError),
        ("worker_resources", ClusterError),
        ("prepare", DataError),
        ("prepare", SpecError),
        ("distribute", TrainingError),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["finished", "cut short"])
def test_what_fails_first_leaves_the_old_run_as_it_was(
    home: Home, monkeypatch: pytest.MonkeyPatch, what: str, kind: type[HourglassError], whole: bool
) -> None:
    """Data that is not there or not the manifest's, a cluster too small, rows that do not fit."""
    if whole:
        home.train()
    else:
        with pytest.raises(Stop):
            home.train(end_at=3)
    before = tree(home.run)
    with monkeypatch.context() as patch:
        patch.setattr(launch, what, refusing(kind))
        with pytest.raises(kind, match="refused"):
            home.train(fresh=True)
    assert tree(home.run) == before
    received = home.train()  # goes on with the old one, or finds it
    assert home.outcome.already == whole
    assert received.resumed_at == (0 if whole else 3)


def test_data_that_is_not_there(home: Home) -> None:
    home.train()
    before = home.digest()
    home.shards.rename(home.shards.with_name("unmounted"))
    with pytest.raises(DataError, match="no such file or folder"):
        home.train(fresh=True)
    assert home.digest() == before


@pytest.mark.parametrize("ended", [Stop, TrainingError, KeyboardInterrupt])
def test_a_fresh_run_that_is_cut_short_leaves_the_old_model_and_is_gone_on_with(
    home: Home, monkeypatch: pytest.MonkeyPatch, ended: type[BaseException]
) -> None:
    home.train()
    old, kept = home.digest(), tree(home.run / "checkpoints")
    printed = Recorder.send

    def send(self: Recorder, kind: str, payload: Any) -> None:
        try:
            printed(self, kind, payload)
        except Stop:
            raise ended("ended") from None

    monkeypatch.setattr(Recorder, "send", send)
    with pytest.raises(ended):
        home.train(fresh=True, end_at=3)
    assert home.digest() == old
    assert tree(home.run / "checkpoints") == kept
    received = home.train()
    assert (received.resumed_at, home.outcome.already) == (3, False)
    assert home.digest() not in (old, None)
    assert home.names() == ["artifact"]
    assert home.train().prepared_at == 0
    assert home.outcome.already


def test_before_its_first_checkpoint_a_fresh_run_is_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.train()
    old = home.digest()
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", refusing(TrainingError))
        with pytest.raises(TrainingError, match="refused"):
            home.train(fresh=True)
    home.train()
    assert (home.outcome.already, home.digest()) == (True, old)


@pytest.mark.parametrize("kept", [True, False])
def test_interrupted_it_says_when_nothing_of_it_is_kept(
    home: Home, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Without --fresh, the run of before would be found then."""
    home.train()
    save, saved = Checkpoints.save, []

    def interrupt(self: Checkpoints, *args: Any, **kwargs: Any) -> None:
        if len(saved) == (2 if kept else 0):
            raise KeyboardInterrupt
        save(self, *args, **kwargs)
        saved.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            home.train(fresh=True)
    assert getattr(caught.value, "__notes__", []) == ([] if kept else [launch.STARTS_OVER])
    assert home.train().resumed_at == (2 if kept else 0)
    assert home.outcome.already is not kept


def test_a_fresh_run_twice_begins_twice(home: Home) -> None:
    home.train()
    for _ in range(2):
        with pytest.raises(Stop):
            home.train(fresh=True, end_at=3)
    received = home.train(fresh=True)
    assert received.resumed_at == 0
    assert home.names() == ["artifact"]


def test_a_fresh_run_on_other_shards_is_gone_on_with(home: Home) -> None:
    """The old artifact is of other rows, and refuses the job without --fresh until then."""
    home.train()
    home.write(np.roll(ROWS, 1, axis=0))
    with pytest.raises(DataError, match="finished, but on other shards; retrain with --fresh"):
        home.train()
    with pytest.raises(Stop):
        home.train(fresh=True, end_at=2)
    assert home.train().resumed_at == 2


@pytest.mark.parametrize("folder", ["checkpoints", "fresh"])
@pytest.mark.parametrize("ends", [Stop, WriteError])
@pytest.mark.parametrize("half", [False, True])
def test_what_the_clearing_up_leaves_makes_no_run_unfinished(
    home: Home, monkeypatch: pytest.MonkeyPatch, folder: str, ends: type[BaseException], half: bool
) -> None:
    """Killed at it, or refused: the same command finds the run finished, and clears up."""
    home.train()
    old, remove = home.digest(), storage.remove

    def fails(uri: str) -> None:
        if uri.endswith(f"/{folder}") and home.digest() != old:
            if half:  # as when a folder is removed file by file
                for file in Path(uri).rglob("state.safetensors"):
                    file.unlink()
            raise ends(13, "denied", uri)
        remove(uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", fails)
        with pytest.raises(Stop) if ends is Stop else contextlib.nullcontext():
            home.train(fresh=True)
        new = home.digest()
        assert new != old
        for _ in range(2):
            with pytest.raises(Stop) if ends is Stop else contextlib.nullcontext():
                assert home.train().prepared_at == 0
                assert home.outcome.already
            assert home.digest() == new
    assert home.train().prepared_at == 0
    assert (home.outcome.already, home.digest(), home.names()) == (True, new, ["artifact"])


def test_without_its_record_in_the_artifact_a_finished_run_would_conclude_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    home.train()
    monkeypatch.setattr(launch, "remove_checkpoints", lambda _: None)
    home.train(fresh=True)
    assert home.train().resumed_at == 0
    whole = artifact.load(str(home.run / "artifact"))
    del whole.manifest.provenance["fresh"]
    monkeypatch.setattr(artifact, "load", lambda _: whole)
    assert home.train().resumed_at == 4


def test_a_later_fresh_run_is_not_taken_for_the_one_that_has_ended(home: Home) -> None:
    home.train()
    home.train(fresh=True)
    with pytest.raises(Stop):
        home.train(fresh=True, end_at=2)
    assert home.train().resumed_at == 2
    assert home.names() == ["artifact"]


def test_a_fresh_run_of_a_new_job_is_as_any_other(home: Home) -> None:
    home.train(fresh=True)
    assert home.names() == ["artifact", "checkpoints"]


def test_a_disk_that_is_full_at_the_end_costs_no_training(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact is not written; the same command does only that. The old one is whole."""
    home.train()
    old = home.digest()
    write = storage.write

    def full(uri: str, content: bytes) -> None:
        if "/artifact/" in uri:
            with storage.writing(uri):
                raise OSError(28, os.strerror(28))
        write(uri, content)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", full)
        with pytest.raises(TrainingError) as caught:
            home.train(fresh=True)
    assert caught.value.exit_code == 1
    wording = str(caught.value)
    assert wording.startswith(f"trained to the end, but {home.run}/artifact/model.safetensors.")
    assert wording.endswith(
        ": cannot be written (No space left on device); existing content is kept; free some space and run "
        "the same command without --fresh to save the model"
    )
    assert home.digest() == old
    assert home.train().resumed_at == 4
    assert home.digest() not in (old, None)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_without_a_place_of_its_own_a_fresh_run_would_go_on_with_the_old_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    home.train()

    def shared(run: Run) -> Checkpoints:
        return Checkpoints(f"{run.uri}/checkpoints", run.job.run_name, run.data_digest, 1)

    monkeypatch.setattr(Run, "checkpoints", property(shared))
    assert home.train(fresh=True).resumed_at == 4


@pytest.mark.parametrize(
    ("quantile", "known"), [(0.5, ", which is {:.6g} at quantile 0.5"), (0.42, "")]
)
def test_another_quantile_of_a_finished_run_is_told(
    home: Home, quantile: float, known: str
) -> None:
    """It is no part of the run's name; with --fresh it is taken over."""
    home.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        home.train()
    first = home.outcome.manifest.calibration
    home.job = home.job.model_copy(update={"quantile": quantile})
    with pytest.warns(UserWarning) as caught:
        home.train()
    assert home.outcome.already
    assert [str(warning.message) for warning in caught] == [
        f"run {home.job.run_name} was finished with quantile 0.99, found quantile {quantile}: the "
        f"threshold stays {first.threshold:.6g}; retrain with --fresh, or score with your own "
        f"`threshold`{known.format(first.quantiles['0.5'])}"
    ]
    home.train(fresh=True)
    found = home.outcome.manifest.calibration
    assert found.quantile == quantile
    assert found.threshold < first.threshold
