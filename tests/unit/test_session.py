"""What a session supplies again, what it keeps of trials, and the reasons of unfinished ones."""

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
from hourglass.tuning import execution, sweep
from hourglass.tuning.execution import TrialSource
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.search import Planned
from hourglass.tuning.session import Session
from hourglass.tuning.space import points
from hourglass.tuning.store import (
    Finished,
    Stopped,
    TrialStore,
    checkpoints_uri,
    load_stopped,
    trial_uri,
)
from hourglass.tuning.trial import Resources, Share

TWO = Resources(Share(1.0, 0.0, 1), 2, 2)
SEEDS = {"train.seed": {"grid": [1, 2, 3]}}
OVER = "max_time_s has passed; the same command continues this trial"
NO_FURTHER = (
    "max_time_s passed before the trial completed another epoch; raise it, or the same command may "
    "never get further"
)


class Events:
    """A listener that remembers results and notes."""

    def __init__(self) -> None:
        self.endings: list[Entry] = []
        self.before: list[Entry] = []
        self.notes: list[str] = []

    def sweeping(self, trials: int, resources: Resources, dataset: dict[str, Any]) -> None: ...

    def loaded(self, dataset: dict[str, Any]) -> None: ...

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
    """As much of a sweep's rows as a session needs before any row is read."""
    data = SimpleNamespace(record={})
    loaded = SimpleNamespace(data=data, train=SimpleNamespace(shape=(9, 6)))
    dataset = SimpleNamespace(manifest=SimpleNamespace(digest="abc"))
    return SimpleNamespace(dataset=dataset, loaded=loaded)


def open_session(made: TuneJob, folder: Path, events: Events) -> tuple[Session, list[str]]:
    """A session that has supplied every trial, and their names."""
    searching = Planned(points(made))
    session = Session(made, str(folder), rows(), TWO, events, searching)  # type: ignore[arg-type]
    session._points = session._batch = searching.ask()
    for point in session._points:
        assert point.job is not None
        session._stopping.enter(point.trial, point.job.train.epochs)
    return session, [point.trial for point in session._points]


def checkpoints(folder: Path, trial: str) -> str:
    return checkpoints_uri(str(folder), trial)


def commit(folder: Path, trial: str, step: int, member: str = ".", whole: bool = True) -> None:
    """Write a checkpoint of a trial, or half of one."""
    uri = storage.join(checkpoints(folder, trial), member, f"{step:08d}.0000000a")
    for name in (STATE, COMMIT) if whole else (STATE,):
        storage.write(storage.join(uri, name), b"{}")


def test_lost_trials_go_on_together_as_often_as_the_base_allows(tmp_path: Path) -> None:
    events = Events()
    session, names = open_session(asked(), tmp_path, events)
    every = list(session._points)
    for _ in range(2):
        assert session.next() is None  # others may still be needed
        session.lost(names)
        assert session.next() == every
    assert events.notes == ["lost the process of 3 trials; another resumes them"] * 2
    session.lost(names)
    assert [(entry.trial, entry.reason) for entry in events.endings] == [
        (name, "its process died 3 times; did it run out of memory?") for name in names
    ]
    assert session.next() == ()


def reasons(session: Session) -> list[str]:
    return [entry.reason for entry in session.close().entries]


def test_the_reason_of_a_trial_that_did_not_get_one_epoch_further(tmp_path: Path) -> None:
    events = Events()
    made = asked(max_time_s=1e-9)
    session, (first, second, _) = open_session(made, tmp_path, events)
    for trial in (first, second):
        commit(tmp_path, trial, 10)  # of another session
    session.started([first])
    session.started([second])
    commit(tmp_path, first, 20)
    commit(tmp_path, second, 20, whole=False)
    session.started([first])  # its process was lost, after it had committed
    assert reasons(session) == [OVER, NO_FURTHER, OVER]
    assert events.notes == [
        "max_time_s: 1e-09 s passed after 0 of at most 3 trials; the same command continues"
    ]


def test_a_session_in_which_no_trial_got_further_suggests_more_time(tmp_path: Path) -> None:
    events = Events()
    session, (first, second, _) = open_session(asked(max_time_s=1e-9), tmp_path, events)
    session.finished(first, "it diverged")  # and never began in this one
    session.started([second])
    assert reasons(session) == ["it diverged", NO_FURTHER, OVER]
    assert events.notes == [
        "max_time_s: 1e-09 s passed after 1 of at most 3 trials; no trial completed another epoch; "
        "raise it"
    ]
    storage.write(f"{trial_uri(str(tmp_path), second)}/artifact/manifest.json", b"{}")
    assert reasons(session)[1] == OVER  # it ended after its last report


def test_a_member_that_got_further_is_a_trial_that_did(tmp_path: Path) -> None:
    made = asked(train={"seeds": 2}, max_time_s=1e-9)
    session, (first, second, _) = open_session(made, tmp_path, Events())
    for trial in (first, second):
        commit(tmp_path, trial, 10)
    session.started([first, second])
    commit(tmp_path, first, 5, member="member-2")
    assert reasons(session) == [OVER, NO_FURTHER, OVER]


def epoch(number: int, error: float) -> dict[str, float]:
    return {"epoch": float(number), "holdout_mse": error}


def test_a_stopped_trial_keeps_only_its_newest_checkpoint(tmp_path: Path) -> None:
    events = Events()
    session, (first, second, _) = open_session(asked(scheduler={"kind": "asha"}), tmp_path, events)
    for trial in (first, second):
        commit(tmp_path, trial, 10)
        commit(tmp_path, trial, 20)
        commit(tmp_path, trial, 30, whole=False)
    for trial, error in ((first, 0.1), (second, 0.2)):
        session.epochs(trial, [epoch(1, error), epoch(2, error), epoch(3, error)])
    assert not session.should_stop(first)
    assert session.should_stop(second)
    session.stopped(second, 1.5)
    assert [(entry.trial, entry.status, entry.epochs) for entry in events.endings] == [
        (second, "stopped", 2)
    ]
    assert session.histories[second] == [epoch(1, 0.2), epoch(2, 0.2)]
    steps = {trial: storage.names(checkpoints(tmp_path, trial)) for trial in (first, second)}
    assert steps[second] == ["00000020.0000000a"]
    assert steps[first] == ["00000010.0000000a", "00000020.0000000a", "00000030.0000000a"]
    kept = storage.join(checkpoints(tmp_path, second), *steps[second])
    assert storage.names(kept) == [COMMIT, STATE]


@pytest.mark.parametrize("error", [0.1, 0.9])
def test_a_trial_that_was_stopped_before_is_compared_again(tmp_path: Path, error: float) -> None:
    """With what the trials before it reach now: then it is stopped again, or resumes."""
    made = asked(scheduler={"kind": "asha"})
    events, every = Events(), points(made)
    first, second, third = every
    Stopped("abc", [epoch(n, 0.5) for n in (1, 2, 3)], 1.5).save(
        trial_uri(str(tmp_path), second.trial)
    )
    session = Session(made, str(tmp_path), rows(), TWO, events, Planned(every))  # type: ignore[arg-type]
    assert [session.next(), session.next(), session.next()] == [[first], [third], None]
    session.epochs(first.trial, [epoch(1, error)])
    assert (events.before, session.next()) == ([], None)
    session.epochs(first.trial, [epoch(2, error), epoch(3, error)])
    if error < 0.5:
        assert [(entry.trial, entry.status, entry.epochs) for entry in events.before] == [
            (second.trial, "stopped", 2)
        ]
        assert session.next() is None  # the others train
    else:
        assert (events.before, session.next()) == ([], [second])
    assert len(session.histories[second.trial]) == (2 if error < 0.5 else 3)


def test_a_failed_trial_is_reported_once_it_is_compared(tmp_path: Path) -> None:
    events = Events()
    session, (first, second, _) = open_session(asked(scheduler={"kind": "asha"}), tmp_path, events)
    session.epochs(second, [epoch(1, 0.9), epoch(2, 0.9), epoch(3, 0.9)])
    session.finished(second, "it diverged")
    assert events.endings == []
    session.epochs(first, [epoch(1, 0.1), epoch(2, 0.1)])
    assert [(e.trial, e.status, e.epochs, e.reason) for e in events.endings] == [
        (second, "stopped", 2, "")
    ]
    kept = load_stopped(trial_uri(str(tmp_path), second), "abc")
    assert kept is not None  # so it does not fail again in the next session
    assert [record["epoch"] for record in kept.history] == [1, 2, 3]


def test_undecided_trials_have_a_reason_of_their_own(tmp_path: Path) -> None:
    made = asked(scheduler={"kind": "asha"}, max_time_s=1e-9)
    every = points(made)
    Stopped("abc", [epoch(n, 0.5) for n in (1, 2, 3)], 1.5).save(
        trial_uri(str(tmp_path), every[2].trial)
    )
    session = Session(made, str(tmp_path), rows(), TWO, Events(), Planned(every))  # type: ignore[arg-type]
    assert [session.next(), session.next()] == [[every[0]], [every[1]]]
    session.started([every[0].trial])
    session.finished(every[1].trial, "it diverged")
    waits = (
        "ended, but the trials before it must reach the same epoch before it is compared with them; run "
        "the same command to continue"
    )
    assert reasons(session) == [NO_FURTHER, "it diverged", waits]


def test_a_trial_that_resumes_from_an_earlier_epoch_keeps_its_history(tmp_path: Path) -> None:
    session, (first, *_) = open_session(asked(scheduler={"kind": "asha"}), tmp_path, Events())
    session.epochs(first, [epoch(n, 0.5) for n in (1, 2, 3, 4)])
    session.epochs(first, [epoch(1, 0.5), epoch(2, 0.5)])
    assert [record["epoch"] for record in session.histories[first]] == [1, 2, 3, 4]


def train_none(source: TrialSource) -> None:
    """Every trial of the source fails."""
    while batch := source.next():
        for point in batch:
            source.finished(point.trial, "it failed")


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
def test_a_sweep_notes_once_that_places_stay_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, notes: list[str]
) -> None:
    monkeypatch.setattr(sweep, "open_dataset", lambda *_: SimpleNamespace(record={}))
    monkeypatch.setattr(sweep, "SharedRows", lambda *_: rows())
    monkeypatch.setattr(sweep, "resources", lambda *_: Resources(Share(1.0, 0.0, 1), 8, at_once))
    monkeypatch.setattr(execution, "train", train_none)
    made = asked(
        {"train.seed": {"randint": [0, 1000]}},
        search={"kind": "optuna", "together": 2},
        max_trials=6,
        pack="never",
    )
    events = Events()
    sweep.run(made, Settings(home=tmp_path), events)
    assert len(events.endings) == 6  # three batches
    assert events.notes == notes


def test_a_batch_that_time_cut_off_is_not_reported_and_keeps_its_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searching = Planned(points(asked()))
    session = Session(asked(), str(tmp_path), rows(), TWO, Events(), searching)  # type: ignore[arg-type]
    over = iter([False, True])  # it runs out while the store is read
    monkeypatch.setattr(session, "over", lambda: next(over))
    monkeypatch.setattr(searching, "tell", lambda _: pytest.fail("none of them ended"))
    monkeypatch.setattr(session, "_remove_parents", lambda _: pytest.fail("all resume from them"))
    assert session.advance() is False
    assert len(session._batch) == 3


def test_a_sweep_with_every_trial_ended_has_ended_even_after_max_time_s(tmp_path: Path) -> None:
    events = Events()
    session, names = open_session(asked(max_time_s=1e-9), tmp_path, events)
    session.started(names)
    for name in names[:2]:
        session.finished(name, "it diverged")
    assert not session.close().ended  # one is missing
    session.finished(names[2], "it diverged")
    events.notes.clear()
    assert session.close().ended
    assert events.notes == []


def test_patience_is_noted_only_where_it_ran_out(tmp_path: Path) -> None:
    for patience, notes in ((2, 1), (50, 0)):
        events = Events()
        session, names = open_session(asked(stop={"patience": patience}), tmp_path, events)
        session._search.most = 100  # type: ignore[misc]  # the space has no more than three
        for name in names:
            session.finished(name, "it diverged")
        session.close()
        assert len(events.notes) == notes


@pytest.mark.parametrize("failed", [True, False])
def test_a_generation_is_kept_while_a_failed_trial_may_be_tried_again(
    tmp_path: Path, failed: bool
) -> None:
    """With another result, other trials would become parents."""
    session, _ = open_session(asked(), tmp_path, Events())
    last = list(session._points)
    before = [replace(point, until=2) for point in last]
    session._points = before + last
    for point in before:
        session._stopping.enter(point.trial, 20)
        commit(tmp_path, point.trial, 10)
    if failed:
        session.finished(before[0].trial, "its process died 3 times; did it run out of memory?")
    session._remove_parents(last)
    left = [storage.exists(checkpoints(tmp_path, point.trial)) for point in before]
    assert left == [failed] * 3


def test_trials_that_were_finished_with_another_quantile_are_noted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()
    made = asked()
    session, names = open_session(made, tmp_path, events)
    kept = Calibration(
        rows=30, quantile=0.9, threshold=0.25, quantiles={"0.5": 0.125}, hash_threshold=(0.0,)
    )
    done = Entry(trial=names[0], status="finished", reason="", values={})
    found = [Finished(done, (), kept)]
    monkeypatch.setattr(TrialStore, "finished", lambda *_: found[-1])
    for point in session._points:
        session._restore(point)
    assert events.notes == [
        f"trial {names[0]}, maybe others as well, was finished with quantile 0.9, found quantile 0.99: the "
        "threshold stays 0.25; retrain with --fresh, or score with your own `threshold`"
    ]
    found.append(Finished(done, (), kept.model_copy(update={"quantile": 0.99})))
    session, _ = open_session(made, tmp_path, events)
    session._restore(session._points[0])
    assert len(events.notes) == 1
