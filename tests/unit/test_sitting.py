"""What a sitting hands out again when processes are lost."""

from pathlib import Path
from typing import Any

from hourglass.job_files import parse
from hourglass.tune_job import TuneJob
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.search import Planned
from hourglass.tuning.sitting import Sitting
from hourglass.tuning.space import points
from hourglass.tuning.trial import Share
from hourglass.tuning.trials import Crew


class Heard:
    """A listener that remembers endings."""

    def __init__(self) -> None:
        self.endings: list[Entry] = []

    def ended(self, entry: Entry, uri: str, history: Any) -> None:
        self.endings.append(entry)


def test_lost_trials_go_on_together_as_often_as_the_base_allows(tmp_path: Path) -> None:
    base = {
        "kind": "train",
        "data": {"uri": "/rows", "features": {"vector": "x"}},
        "model": {"network": {"kind": "dense", "widths": [3], "activation": "tanh"}},
        "scale": {"max_failures": 2},
    }
    made = parse({"kind": "tune", "base": base, "space": {"train.seed": {"grid": [1, 2]}}})
    assert isinstance(made, TuneJob)
    every = points(made)
    names = [point.trial for point in every]
    heard = Heard()
    crew = Crew(Share(1.0, 0.0, 1), 2, 2)
    sitting = Sitting(made, str(tmp_path), None, crew, heard, Planned([]))  # type: ignore[arg-type]
    sitting._points = sitting._batch = every
    for _ in range(2):
        assert sitting.next() is None  # the others may still need something
        sitting.lost(names)
        assert sitting.next() == every
    sitting.lost(names)
    assert [(entry.trial, entry.reason) for entry in heard.endings] == [
        (name, "its process was lost 3 times; out of memory?") for name in names
    ]
    assert sitting.next() == ()
