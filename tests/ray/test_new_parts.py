"""New parts on a cluster: training on two workers, and sweeps, packed where parts declare it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from new_parts_kit import DECLARED, EARLY, UNDECLARED, extended, run

SWEEPS = {
    "packed": (DECLARED, "always"),
    "not packed": (DECLARED, "never"),
    "not declared": ({**DECLARED, **UNDECLARED}, "always"),
    "not declared, auto": ({**DECLARED, **UNDECLARED}, "auto"),
}
SCRIPT = """
import json, sys
from cluster_kit import project, write_shards
from sweep_kit import Events, job, tune
from hourglass import artifact, run
from hourglass.config.files import parse
from hourglass.settings import Settings

def entries(board):
    found = [(one.values["train.optimizer.lr"], one.status, one.epochs, one.holdout_mse)
             for one in board.entries]
    return sorted(found, key=lambda one: one[0])

found = {}
rates = {"train.optimizer.lr": {"grid": [0.003, 0.01, 0.03, 0.05]}}
sweeps, every, early = json.loads(sys.argv[1])
with project() as home:
    (home / "rows").mkdir()
    shards = write_shards(home / "rows")
    tree = {"kind": "train", "name": "all", "model": every, "train": {"epochs": 3},
            "data": {"uri": str(shards), "features": {"vector": "x"}}, "scale": {"workers": 2}}
    trained = run.train(parse(tree), Settings(home=home / "train"))
    manifest = artifact.load(trained.outcome.uri).manifest
    found["train"] = [record["train_mse"] for record in manifest.provenance["history"]]
    found["scheduler"] = entries(tune(job(shards, rates, scheduler=early), home / "scheduler"))
    for name, (model, pack) in sweeps.items():
        space = {f"model.{place}": {"grid": [part]} for place, part in model.items()} | rates
        events = Events()
        board = tune(job(shards, space, pack=pack), home / name, events)
        packs = [artifact.load(uri).manifest.provenance.get("packed", 1) for uri in events.artifacts]
        found[name] = {"notes": events.notes, "packs": packs, "trials": entries(board)}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each sweep came to, all on one cluster."""
    package = extended(tmp_path_factory.mktemp("package"))
    printed = run(package, SCRIPT, json.dumps([SWEEPS, {**DECLARED, **UNDECLARED}, EARLY]))
    each: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return each


@pytest.mark.parametrize("name", SWEEPS)
def test_every_trial_of_new_parts_is_trained(found: dict[str, Any], name: str) -> None:
    trials = found[name]["trials"]
    assert [status for _, status, _, _ in trials] == ["finished"] * 4
    assert [rate for rate, _, _, _ in trials] == [0.003, 0.01, 0.03, 0.05]


def test_new_parts_train_on_two_workers(found: dict[str, Any]) -> None:
    assert len(found["train"]) == 3
    assert found["train"][-1] < found["train"][0]


def test_a_new_scheduler_stops_trials(found: dict[str, Any]) -> None:
    ends = [(status, epochs) for _, status, epochs, _ in found["scheduler"]]
    assert ends == [("finished", 3)] + [("stopped", 1)] * 3


def test_parts_that_declare_it_train_packed_with_the_results_of_single_runs(
    found: dict[str, Any],
) -> None:
    packed, single = found["packed"], found["not packed"]
    assert sum(size > 1 for size in packed["packs"]) == 4
    assert single["packs"] == [1] * 4
    for (*_, one), (*_, other) in zip(packed["trials"], single["trials"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_part_that_declares_nothing_trains_by_itself(found: dict[str, Any]) -> None:
    """Its `if` on a value would end every packed trial."""
    assert found["not declared"]["packs"] == found["not declared, auto"]["packs"] == [1] * 4
    assert found["not declared"]["notes"] == [
        "pack: always finds nothing to pack: penalty loud: it does not declare that it can be packed"
    ]
    assert found["not declared, auto"]["notes"] == []
