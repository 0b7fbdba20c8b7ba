"""A new part is one class in one file and one name in its union: everything else works with it."""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import hourglass
from hourglass.config.search import Scheduler
from hourglass.model.adversary import Prior
from hourglass.model.code import Code
from hourglass.model.corruption import Corruption
from hourglass.model.losses import Loss
from hourglass.model.penalties import Penalty
from hourglass.model.preprocessing import Scaling
from hourglass.model.spec import Network

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from new_parts_kit import DECLARED, EARLY, UNDECLARED, extended, run
from training_kit import generated

PARTS: dict[str, dict[str, Any]] = {
    **{name: {name: part} for name, part in DECLARED.items()},
    "penalty of values": UNDECLARED,
    "all": DECLARED,
}
HYPERPARAMETERS = {
    "network": [],
    "corruption": ["model.corruption.p"],
    "code": ["model.code.levels"],
    "loss": ["model.loss.sharpness"],
    "penalties": ["model.penalties.0.weight"],
    "penalty of values": ["model.penalties.0.weight"],
}
SCRIPT = """
import json, sys
from typer.testing import CliRunner
import hourglass
from hourglass import Autoencoder, artifact, cli
from hourglass.config.files import parse
from hourglass.tuning.pack import obstacle
from training_kit import generated

folder, parts = sys.argv[1], json.loads(sys.argv[2])
rows, found = generated(), {}

def command(*words):
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.output

for name, model in parts.items():
    model = {"network": {"kind": "dense", "widths": [4]}, **model}
    tree = {"kind": "train", "name": "new", "model": model, "train": {"epochs": 2},
            "data": {"uri": folder + "/rows.parquet", "features": {"vector": "x"}}}
    place = f"{folder}/{name}"
    with open(place + ".yaml", "w") as file:
        json.dump(tree, file)
    shown = command("check", place + ".yaml", "--data")
    ae = Autoencoder(**model, epochs=2, random_state=0).fit(rows)
    ae.save(place)
    loaded = Autoencoder.load(place)
    command("report", place, "--rows", folder + "/rows.parquet", "--out", place + ".html")
    command("plot-model", place + ".yaml", "--out", place + ".job.svg")
    command("plot-model", place, "--out", place + ".model.svg")
    provenance = artifact.load(place).manifest.provenance
    found[name] = {
        "package": hourglass.__file__,
        "shown": shown,
        "same": bool((ae.anomaly(rows) == loaded.anomaly(rows)).all()),
        "falls": [one["train_mse"] for one in provenance["history"]],
        "hyperparameters": [one["hyperparameter"] for one in provenance["sensitivity"]],
        "obstacle": obstacle(parse(tree)),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def extended_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extended(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def found(
    extended_package: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """What each new part did, and the folder of what it wrote."""
    folder = tmp_path_factory.mktemp("new")
    lists = pa.array(generated().tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"x": lists}), folder / "rows.parquet", write_page_checksum=True)
    printed = run(extended_package, SCRIPT, str(folder), json.dumps(PARTS))
    return folder, json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("name", PARTS)
def test_a_new_part_works_everywhere(found: tuple[Path, dict[str, Any]], name: str) -> None:
    folder, each = found
    one = each[name]
    assert Path(one["package"]).parents[1] != Path(hourglass.__file__).parents[1]
    assert "12 features" in one["shown"]
    assert one["same"]
    assert one["falls"][-1] < one["falls"][0]
    assert one["hyperparameters"] == HYPERPARAMETERS.get(name, one["hyperparameters"])
    assert len(one["hyperparameters"]) == (4 if name == "all" else len(HYPERPARAMETERS[name]))
    kind = "loud" if name == "penalty of values" else ""
    reason = "it does not declare that it can be packed"
    assert one["obstacle"] == (f"penalty {kind}: {reason}" if kind else "")
    assert "<h2" in (folder / f"{name}.html").read_text()
    for source in ("job", "model"):
        drawn = (folder / f"{name}.{source}.svg").read_text()
        for part in PARTS[name].values():
            kinds = [inner["kind"] for inner in (part if isinstance(part, list) else [part])]
            assert all(kind in drawn for kind in kinds)


SCHEDULED = """
import json, sys
from typer.testing import CliRunner
from hourglass import cli
from hourglass.config.files import parse
from hourglass.tuning.stopping import Stopping

folder, tree = sys.argv[1], json.loads(sys.argv[2])
with open(folder + "/sweep.yaml", "w") as file:
    json.dump(tree, file)
done = CliRunner().invoke(cli.app, ("check", folder + "/sweep.yaml"))
stopping = Stopping(parse(tree).scheduler, "holdout_mse")
for trial in ("0", "1", "2"):
    stopping.enter(trial, 4)
for trial in ("0", "1", "2"):
    stopping.observe(trial, [{"epoch": float(n), "holdout_mse": 1.0 / n} for n in (1, 2, 3, 4)])
    stopping.ended(trial)
print(json.dumps([done.exit_code, done.output, [stopping.last_epoch(t) for t in ("0", "1", "2")]]))
"""


def test_a_new_scheduler_is_read_and_asked(extended_package: Path, tmp_path: Path) -> None:
    base = {"kind": "train", "name": "new", "model": {"network": {"kind": "dense", "widths": [4]}},
            "train": {"epochs": 4}, "data": {"uri": "rows", "features": {"vector": "x"}}}  # fmt: skip
    tree = {"kind": "tune", "name": "new", "base": base, "scheduler": EARLY | {"after": 2},
            "space": {"train.optimizer.lr": {"grid": [0.01, 0.02, 0.03]}}}  # fmt: skip
    printed = run(extended_package, SCHEDULED, str(tmp_path), json.dumps(tree))
    code, output, last_epochs = json.loads(printed.splitlines()[-1])
    assert code == 0, output
    assert last_epochs == [None, 2, 2]


UNIONS = (Penalty, Loss, Corruption, Code, Network, Scaling, Prior, Scheduler)
OWN = (
    *(f"model/{name}.py" for name in ("penalties", "losses", "corruption", "code", "adversary")),
    *(f"model/{name}.py" for name in ("spec", "dense", "conv", "lstm", "preprocessing", "presets")),
    "config/search.py",
)
"""Files of the parts themselves, and of presets, which are choices of parts."""


def named() -> tuple[set[str], set[str]]:
    """The classes of all parts, and their kinds."""
    classes = [part for union in UNIONS for part in get_args(get_args(union)[0])]
    return {part.__name__ for part in classes}, {
        part.model_fields["kind"].default for part in classes
    }


def comparisons(source: str) -> Iterator[str]:
    """Places where a program asks for the kind of a part: `x.kind == "mae"`, `isinstance(x, Mae)`."""
    classes, kinds = named()
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.Compare) and any(
            isinstance(inner, ast.Attribute | ast.Subscript | ast.Name)
            and "kind" in ast.unparse(inner)
            for inner in (node.left, *node.comparators)
        ):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            parts = node.args[1:]
        inside = [inner for part in parts for inner in ast.walk(part)]
        if any(
            (isinstance(inner, ast.Constant) and inner.value in kinds)
            or (isinstance(inner, ast.Name | ast.Attribute) and ast.unparse(inner).split(".")[-1] in classes)
            for inner in inside
        ):  # fmt: skip
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_nothing_but_its_own_file_asks_for_the_kind_of_a_part() -> None:
    (root,) = map(Path, hourglass.__path__)
    found = [
        f"{path.relative_to(root)}:{place}"
        for path in sorted(root.rglob("*.py"))
        if str(path.relative_to(root)) not in OWN
        for place in comparisons(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'spec.loss.kind == "mae"',
        'code.kind not in ("plain", "top_k")',
        'chosen["kind"] == "dense"',
        "isinstance(network, Dense)",
        "isinstance(spec, dense.Dense | Conv)",
        'kind = 1 if scheduler.kind != "pbt" else 2',
    ],
)
def test_such_a_question_is_found(source: str) -> None:
    assert len(list(comparisons(source))) == 1
    assert (
        list(comparisons(source.replace("kind", "name").replace("Dense", "D").replace("Conv", "C")))
        == []
    )
