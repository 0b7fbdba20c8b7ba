"""New parts on a cluster: sweeps train them packed where they declare it, otherwise one by one."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from new_parts_kit import DECLARED, UNDECLARED, extended, run

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
from hourglass import artifact

found = {}
with project() as home:
    (home / "rows").mkdir()
    shards = write_shards(home / "rows")
    for name, (model, pack) in json.loads(sys.argv[1]).items():
        space = {f"model.{place}": {"grid": [part]} for place, part in model.items()}
        space["train.optimizer.lr"] = {"grid": [0.003, 0.01, 0.03, 0.05]}
        events = Events()
        board = tune(job(shards, space, pack=pack), home / name, events)
        packs = [artifact.load(uri).manifest.provenance.get("packed", 1) for uri in events.artifacts]
        trials = sorted((entry.status, entry.values["train.optimizer.lr"], entry.holdout_mse)
                        for entry in board.entries)
        found[name] = {"notes": events.notes, "packs": packs, "trials": trials}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each sweep came to, all on one cluster."""
    package = extended(tmp_path_factory.mktemp("package"))
    printed = run(package, SCRIPT, json.dumps(SWEEPS))
    each: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return each


@pytest.mark.parametrize("name", SWEEPS)
def test_every_trial_of_new_parts_is_trained(found: dict[str, Any], name: str) -> None:
    trials = found[name]["trials"]
    assert [status for status, _, _ in trials] == ["finished"] * 4
    assert [rate for _, rate, _ in trials] == [0.003, 0.01, 0.03, 0.05]


def test_parts_that_declare_it_train_packed_with_the_results_of_single_runs(
    found: dict[str, Any],
) -> None:
    packed, single = found["packed"], found["not packed"]
    assert sum(size > 1 for size in packed["packs"]) == 4
    assert single["packs"] == [1] * 4
    for (_, _, one), (_, _, other) in zip(packed["trials"], single["trials"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_part_that_declares_nothing_trains_by_itself(found: dict[str, Any]) -> None:
    """Its `if` on a value would end every packed trial."""
    assert found["not declared"]["packs"] == found["not declared, auto"]["packs"] == [1] * 4
    assert found["not declared"]["notes"] == [
        "pack: always finds nothing to pack: penalty loud: it does not declare that it can be packed"
    ]
    assert found["not declared, auto"]["notes"] == []
