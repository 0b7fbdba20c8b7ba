"""What a sitting hands out again, what it keeps of trials, and what it says of those cut short."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hourglass import storage
from hourglass.artifact import Calibration
from hourglass.config.files import parse
from hourglass.config.tune import TuneJob
from hourglass.settings import Settings
from hourglass.training.checkpoint import COMMIT, STATE
from hourglass.tuning import on_disk, resources, sweep, trials
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.on_disk import OnDisk, Stopped
from hourglass.tuning.resources import Crew
from hourglass.tuning.search import Planned
from hourglass.tuning.session import Sitting
from hourglass.tuning.space import points
from hourglass.tuning.trial import Share, checkpoints_of, trial_folder
from hourglass.tuning.trials import Desk

SEEDS = {"train.seed": {"grid": [1, 2, 3]}}
OVER = "max_time_s was over; the same command goes on with it"
NO_FURTHER = (
    "max_time_s was over before one more epoch of it was; give it more time, or the same command may "
    "never get further"
)


class Heard:
    """A listener that remembers endings and notes."""

    def __init__(self) -> None:
        self.endings: list[Entry] = []
        self.before: list[Entry] = []
        self.notes: list[str] = []

    def sweeping(self, trials: int, crew: Crew, dataset: dict[str, Any]) -> None: ...

    def placed(self, dataset: dict[str, Any]) -> None: ...

    def started(self, values: Sequence[dict[str, Any]]) -> None: ...

    def known(self, entry: Entry) -> None:
        self.before.append(entry)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def ended(self, entry: Entry, uri: str, history: Any) -> None:
        self.endings.append(entry)


def asked(space: Any = SEEDS, train: dict[str, Any] | None = None, **how: Any) -> TuneJob:
    base = {
        "kind": "train",
        "data": {"uri": "/rows", "features": {"vector": "x"}},
        "model": {"network": {"kind": "dense", "widths": [3], "activation": "tanh"}},
        "train": train or {},
        "scale": {"max_failures": 2},
    }
    made = parse({"kind": "tune", "name": "small", "base": base, "space": space, **how})
    assert isinstance(made, TuneJob)
    return made


def rows() -> Any:
    """As much of a sweep's rows as is asked for while none is read."""
    measured = SimpleNamespace(dataset={})
    placed = SimpleNamespace(measured=measured, train=SimpleNamespace(shape=(9, 6)))
    return SimpleNamespace(manifest=SimpleNamespace(digest="abc"), placed=placed)


def seated(made: TuneJob, folder: Path, heard: Heard) -> tuple[Sitting, list[str]]:
    """A sitting that handed out every trial, and their names."""
    crew = Crew(Share(1.0, 0.0, 1), 2, 2)
    searching = Planned(points(made))
    sitting = Sitting(made, str(folder), rows(), crew, heard, searching)  # type: ignore[arg-type]
    sitting._points = sitting._batch = searching.ask()
    for point in sitting._points:
        assert point.job is not None
        sitting._stopping.enter(point.trial, point.job.train.epochs)
    return sitting, [point.trial for point in sitting._points]


def checkpoints(folder: Path, trial: str) -> str:
    return checkpoints_of(trial_folder(str(folder), trial))


def commit(folder: Path, trial: str, step: int, member: str = ".", whole: bool = True) -> None:
    """Write a checkpoint of a trial, or half of one."""
    uri = storage.join(checkpoints(folder, trial), member, f"{step:08d}.0000000a")
    for name in (STATE, COMMIT) if whole else (STATE,):
        storage.write(storage.join(uri, name), b"{}")


def test_lost_trials_go_on_together_as_often_as_the_base_allows(tmp_path: Path) -> None:
    heard = Heard()
    sitting, names = seated(asked(), tmp_path, heard)
    every = list(sitting._points)
    for _ in range(2):
        assert sitting.next() is None  # the others may still need something
        sitting.lost(names)
        assert sitting.next() == every
    assert heard.notes == ["the process of 3 trials was lost; they go on in another"] * 2
    sitting.lost(names)
    assert [(entry.trial, entry.reason) for entry in heard.endings] == [
        (name, "its process was lost 3 times; out of memory?") for name in names
    ]
    assert sitting.next() == ()


def reasons(sitting: Sitting) -> list[str]:
    return [entry.reason for entry in sitting.close().entries]


def test_time_that_was_over_before_an_epoch_says_so(tmp_path: Path) -> None:
    heard = Heard()
    made = asked(max_time_s=1e-9)
    sitting, (first, second, _) = seated(made, tmp_path, heard)
    for trial in (first, second):
        commit(tmp_path, trial, 10)  # of another sitting
    sitting.started([first])
    sitting.started([second])
    commit(tmp_path, first, 20)
    commit(tmp_path, second, 20, whole=False)
    sitting.started([first])  # its process was lost, after it had committed
    assert reasons(sitting) == [OVER, NO_FURTHER, OVER]
    assert heard.notes == [
        "max_time_s: 1e-09 s were over after 0 of at most 3 trials; the same command goes on"
    ]


def test_a_sitting_that_got_nobody_further_says_so(tmp_path: Path) -> None:
    heard = Heard()
    sitting, (first, second, _) = seated(asked(max_time_s=1e-9), tmp_path, heard)
    sitting.finished(first, "it diverged")  # and never began in this one
    sitting.started([second])
    assert reasons(sitting) == ["it diverged", NO_FURTHER, OVER]
    assert heard.notes == [
        "max_time_s: 1e-09 s were over after 1 of at most 3 trials; no trial got one epoch further; "
        "raise it"
    ]
    storage.write(f"{trial_folder(str(tmp_path), second)}/artifact/manifest.json", b"{}")
    assert reasons(sitting)[1] == OVER  # it ended, and nobody heard of it


def test_a_member_that_got_further_is_a_trial_that_did(tmp_path: Path) -> None:
    made = asked(train={"seeds": 2}, max_time_s=1e-9)
    sitting, (first, second, _) = seated(made, tmp_path, Heard())
    for trial in (first, second):
        commit(tmp_path, trial, 10)
    sitting.started([first, second])
    commit(tmp_path, first, 5, member="member-2")
    assert reasons(sitting) == [OVER, NO_FURTHER, OVER]


def epoch(number: int, error: float) -> dict[str, float]:
    return {"epoch": float(number), "holdout_mse": error}


def test_a_stopped_trial_keeps_its_newest_checkpoint_alone(tmp_path: Path) -> None:
    heard = Heard()
    sitting, (first, second, _) = seated(asked(scheduler={"kind": "asha"}), tmp_path, heard)
    for trial in (first, second):
        commit(tmp_path, trial, 10)
        commit(tmp_path, trial, 20)
        commit(tmp_path, trial, 30, whole=False)
    for trial, error in ((first, 0.1), (second, 0.2)):
        sitting.epochs(trial, [epoch(1, error), epoch(2, error), epoch(3, error)])
    assert not sitting.to_stop(first)
    assert sitting.to_stop(second)
    sitting.stopped(second, 1.5)
    assert [(entry.trial, entry.status, entry.epochs) for entry in heard.endings] == [
        (second, "stopped", 2)
    ]
    assert sitting.histories[second] == [epoch(1, 0.2), epoch(2, 0.2)]
    steps = {trial: storage.names(checkpoints(tmp_path, trial)) for trial in (first, second)}
    assert steps[second] == ["00000020.0000000a"]
    assert steps[first] == ["00000010.0000000a", "00000020.0000000a", "00000030.0000000a"]
    kept = storage.join(checkpoints(tmp_path, second), *steps[second])
    assert storage.names(kept) == [COMMIT, STATE]


@pytest.mark.parametrize("error", [0.1, 0.9])
def test_a_trial_that_was_stopped_before_is_judged_anew(tmp_path: Path, error: float) -> None:
    """Beside what those before it come to now: then it is stopped again, or goes on."""
    made = asked(scheduler={"kind": "asha"})
    heard, crew, every = Heard(), Crew(Share(1.0, 0.0, 1), 2, 2), points(made)
    first, second, third = every
    Stopped("abc", [epoch(n, 0.5) for n in (1, 2, 3)], 1.5).save(
        trial_folder(str(tmp_path), second.trial)
    )
    sitting = Sitting(made, str(tmp_path), rows(), crew, heard, Planned(every))  # type: ignore[arg-type]
    assert [sitting.next(), sitting.next(), sitting.next()] == [[first], [third], None]
    sitting.epochs(first.trial, [epoch(1, error)])
    assert (heard.before, sitting.next()) == ([], None)
    sitting.epochs(first.trial, [epoch(2, error), epoch(3, error)])
    if error < 0.5:
        assert [(entry.trial, entry.status, entry.epochs) for entry in heard.before] == [
            (second.trial, "stopped", 2)
        ]
        assert sitting.next() is None  # the others train
    else:
        assert (heard.before, sitting.next()) == ([], [second])
    assert len(sitting.histories[second.trial]) == (2 if error < 0.5 else 3)


def test_a_trial_that_fails_is_told_of_when_it_is_judged(tmp_path: Path) -> None:
    heard = Heard()
    sitting, (first, second, _) = seated(asked(scheduler={"kind": "asha"}), tmp_path, heard)
    sitting.epochs(second, [epoch(1, 0.9), epoch(2, 0.9), epoch(3, 0.9)])
    sitting.finished(second, "it diverged")
    assert heard.endings == []
    sitting.epochs(first, [epoch(1, 0.1), epoch(2, 0.1)])
    assert [(e.trial, e.status, e.epochs, e.reason) for e in heard.endings] == [
        (second, "stopped", 2, "")
    ]
    kept = on_disk.load_stopped(trial_folder(str(tmp_path), second), "abc")
    assert kept is not None  # so it does not fail again in the next sitting
    assert [record["epoch"] for record in kept.history] == [1, 2, 3]


def test_trials_that_wait_for_their_verdict_are_not_called_cut(tmp_path: Path) -> None:
    made = asked(scheduler={"kind": "asha"}, max_time_s=1e-9)
    every = points(made)
    Stopped("abc", [epoch(n, 0.5) for n in (1, 2, 3)], 1.5).save(
        trial_folder(str(tmp_path), every[2].trial)
    )
    crew = Crew(Share(1.0, 0.0, 1), 2, 2)
    sitting = Sitting(made, str(tmp_path), rows(), crew, Heard(), Planned(every))  # type: ignore[arg-type]
    assert [sitting.next(), sitting.next()] == [[every[0]], [every[1]]]
    sitting.started([every[0].trial])
    sitting.finished(every[1].trial, "it diverged")
    waits = "it ended, and is judged when the trials before it have come as far; the same command goes on"
    assert reasons(sitting) == [NO_FURTHER, "it diverged", waits]


def test_a_trial_that_begins_again_further_back_keeps_what_was_heard(tmp_path: Path) -> None:
    sitting, (first, *_) = seated(asked(scheduler={"kind": "asha"}), tmp_path, Heard())
    sitting.epochs(first, [epoch(n, 0.5) for n in (1, 2, 3, 4)])
    sitting.epochs(first, [epoch(1, 0.5), epoch(2, 0.5)])
    assert [record["epoch"] for record in sitting.histories[first]] == [1, 2, 3, 4]


def train_none(made: TuneJob, placed: Any, crew: Crew, folder: str, desk: Desk) -> None:
    """Whatever the desk hands out fails."""
    while batch := desk.next():
        for point in batch:
            desk.finished(point.trial, "it failed")


@pytest.mark.parametrize(
    ("at_once", "notes"),
    [
        (2, []),
        (
            5,
            [
                "search.together is 2: 3 of 5 places for trials stay empty; 5 fills them, and proposes "
                "other points"
            ],
        ),
    ],
)
def test_a_sweep_says_once_that_places_stay_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, notes: list[str]
) -> None:
    monkeypatch.setattr(sweep, "open_dataset", lambda *_: (None, None))
    monkeypatch.setattr(sweep, "describe", lambda _: {})
    monkeypatch.setattr(sweep, "Rows", lambda *_: rows())
    monkeypatch.setattr(resources, "crew", lambda _: Crew(Share(1.0, 0.0, 1), 8, at_once))
    monkeypatch.setattr(trials, "train", train_none)
    made = asked(
        {"train.seed": {"randint": [0, 1000]}},
        search={"kind": "optuna", "together": 2},
        max_trials=6,
        pack="never",
    )
    heard = Heard()
    sweep.run(made, Settings(home=tmp_path), heard)
    assert len(heard.endings) == 6  # three batches
    assert heard.notes == notes


def test_a_batch_that_time_cut_off_is_not_told_of_and_keeps_what_it_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searching = Planned(points(asked()))
    crew = Crew(Share(1.0, 0.0, 1), 2, 2)
    sitting = Sitting(asked(), str(tmp_path), rows(), crew, Heard(), searching)  # type: ignore[arg-type]
    over = iter([False, True])  # it runs out while the points are looked at
    monkeypatch.setattr(sitting, "over", lambda: next(over))
    monkeypatch.setattr(searching, "tell", lambda _: pytest.fail("none of them ended"))
    monkeypatch.setattr(sitting, "_forget_parents", lambda _: pytest.fail("all go on from them"))
    assert sitting.advance() is False
    assert len(sitting._batch) == 3


def test_a_sweep_that_came_to_its_end_has_ended_whatever_the_clock_says(tmp_path: Path) -> None:
    heard = Heard()
    sitting, names = seated(asked(max_time_s=1e-9), tmp_path, heard)
    sitting.started(names)
    for name in names[:2]:
        sitting.finished(name, "it diverged")
    assert not sitting.close().ended  # one is missing
    sitting.finished(names[2], "it diverged")
    heard.notes.clear()
    assert sitting.close().ended
    assert heard.notes == []


def test_patience_is_named_only_where_it_ran_out(tmp_path: Path) -> None:
    for patience, said in ((2, 1), (50, 0)):
        heard = Heard()
        sitting, names = seated(asked(stop={"patience": patience}), tmp_path, heard)
        sitting._searching.most = 100  # type: ignore[misc]  # the space has no more than three
        for name in names:
            sitting.finished(name, "it diverged")
        sitting.close()
        assert len(heard.notes) == said


@pytest.mark.parametrize("failed", [True, False])
def test_a_generation_is_kept_while_a_failed_trial_may_be_tried_again(
    tmp_path: Path, failed: bool
) -> None:
    """Tried again and better, it would send others on from others."""
    sitting, _ = seated(asked(), tmp_path, Heard())
    last = list(sitting._points)
    before = [replace(point, until=2) for point in last]
    sitting._points = before + last
    for point in before:
        sitting._stopping.enter(point.trial, 20)
        commit(tmp_path, point.trial, 10)
    if failed:
        sitting.finished(before[0].trial, "its process was lost 3 times; out of memory?")
    sitting._forget_parents(last)
    left = [storage.exists(checkpoints(tmp_path, point.trial)) for point in before]
    assert left == [failed] * 3


def test_trials_that_were_finished_with_another_quantile_are_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    made = asked()
    sitting, names = seated(made, tmp_path, heard)
    kept = Calibration(
        rows=30, quantile=0.9, threshold=0.25, quantiles={"0.5": 0.125}, hash_threshold=(0.0,)
    )
    found = SimpleNamespace(manifest=SimpleNamespace(calibration=kept))
    monkeypatch.setattr(OnDisk, "artifact", lambda *_: found)
    done = Entry(trial=names[0], status="finished", reason="", values={})
    monkeypatch.setattr(Sitting, "_finished", lambda *_: done)
    for point in sitting._points:
        sitting._find(point)
    assert heard.notes == [
        f"trial {names[0]}, maybe others as well, was finished with quantile 0.9, found quantile 0.99: the "
        "threshold stays 0.25; train anew with --fresh, or score with a `threshold` of your own"
    ]
    kept = kept.model_copy(update={"quantile": 0.99})
    found.manifest.calibration = kept
    sitting, _ = seated(made, tmp_path, heard)
    sitting._find(sitting._points[0])
    assert len(heard.notes) == 1
