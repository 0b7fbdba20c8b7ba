"""What tests of sweeps on a cluster share: a listener that records its events, and the call."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hourglass import artifact
from hourglass.artifact import Artifact
from hourglass.config.files import parse
from hourglass.config.tune import TuneJob
from hourglass.settings import Settings
from hourglass.training.state import Record
from hourglass.tuning import sweep
from hourglass.tuning.leaderboard import Entry, Leaderboard
from hourglass.tuning.space import Point
from hourglass.tuning.trial import Resources

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from cluster_kit import in_process
from training_kit import Run, same_bits, timeless


@dataclass
class Events:
    """A listener that records its events."""

    most: int = 0
    resources: Resources | None = None
    before: list[Entry] = field(default_factory=list)
    endings: list[Entry] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    begun: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    def sweeping(self, trials: int, resources: Resources, dataset: dict[str, Any]) -> None:
        self.most, self.resources = trials, resources

    def known(self, entry: Entry) -> None:
        self.before.append(entry)

    def loaded(self, dataset: dict[str, Any]) -> None:
        self.rows = dataset["rows"]

    def note(self, text: str) -> None:
        self.notes.append(text)

    def started(self, values: Sequence[dict[str, Any]]) -> None:
        self.begun += values

    def ended(self, entry: Entry, uri: str, history: Sequence[Record]) -> None:
        self.endings.append(entry)
        self.epochs[entry.trial] = len(history)
        self.artifacts += [uri] if uri else []


def job(shards: Path, space: dict[str, Any], **fields: Any) -> TuneJob:
    """A sweep of a small model on `shards`; `train` is added to the base's."""
    train = {"epochs": 3, "batch_size": 48, "seed": 3, "optimizer": {"kind": "adam"}}
    made = parse(
        {
            "kind": "tune",
            "name": "grid",
            "base": {
                "kind": "train",
                "name": "small",
                "data": {"uri": str(shards), "features": {"vector": "x"}},
                "model": {
                    "network": {"kind": "dense", "widths": [6, 3], "activation": "tanh"},
                    "corruption": {"kind": "gaussian", "sd": 0.05},
                },
                "train": train | fields.pop("train", {}),
                "scale": {"workers": 2},
            },
            "space": space,
            **fields,
        }
    )
    assert isinstance(made, TuneJob)
    return made


def tune(made: TuneJob, folder: Path, events: Events | None = None, **how: Any) -> Leaderboard:
    """Run the sweep below `folder`."""
    return sweep.run(made, Settings(home=folder), events or Events(), **how).board


def untimed(board: Leaderboard) -> list[dict[str, Any]]:
    """Its entries without what the clock decides."""
    return [{**dict(entry), "seconds": None} for entry in board.entries]


def artifact_of(folder: Path, point: Point) -> Artifact:
    """What the trial of a point became, in a sweep below `folder`."""
    return artifact.load(str(folder / "runs" / "grid" / "trials" / point.trial / "artifact"))


def fitted(point: Point, shards: Path) -> Run:
    """The trial's run without Ray."""
    assert point.job is not None
    alone = in_process(point.job, shards)
    alone.fit()
    return alone


def least(alone: Run) -> float:
    """The error that such a run has on the leaderboard."""
    return min(record["holdout_mse"] for record in alone.records)


def assert_like_in_process(folder: Path, point: Point, shards: Path) -> Run:
    """The trial's artifact is bit-identical to the loop without Ray, whose run is returned."""
    found, alone = artifact_of(folder, point), fitted(point, shards)
    mine = {name: value.numpy() for name, value in found.module.state_dict().items()}
    expected = {name: v.numpy() for name, v in alone.state.module.state_dict().items()}
    assert same_bits(mine, expected)
    assert timeless(found.manifest.provenance["history"]) == timeless(alone.records)
    return alone


def assert_ranked(board: Leaderboard, expected: dict[str, float]) -> None:
    """The trials are those expected, with exactly these errors, the lowest first."""
    ranked = sorted(expected.items(), key=lambda item: item[1])
    assert [(entry.trial, entry.holdout_mse) for entry in board.entries] == ranked
