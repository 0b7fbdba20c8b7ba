"""A hyperparameter without effect is refused before the run; every number of every part has one."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hourglass.config.files import dump, parse
from hourglass.config.train import TrainJob
from hourglass.config.tune import TuneJob
from hourglass.data import reading
from hourglass.data.dataset import DatasetStatistics, open_dataset
from hourglass.data.reading import _merged, _ReadAll
from hourglass.data.schema import FeatureSchema
from hourglass.data.stats import measure
from hourglass.errors import SpecError
from hourglass.training.build import build
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.complete import Run, complete
from hourglass.training.prepare import prepare
from hourglass.training.sensitivity import check_sensitivity
from hourglass.tuning.store import SharedRows

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import CPU, generated, job, memory_loader

ROWS = generated()

ALIVE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "none": ({}, []),
    "gaussian": ({"corruption": {"kind": "gaussian", "sd": 0.1}}, ["corruption.sd"]),
    "cauchy": ({"corruption": {"kind": "cauchy", "scale": 0.1}}, ["corruption.scale"]),
    "zeros": ({"corruption": {"kind": "zeros", "p": 0.001}}, ["corruption.p"]),
    "ones": ({"corruption": {"kind": "ones", "p": 0.001}}, ["corruption.p"]),
    "salt and pepper": ({"corruption": {"kind": "salt_pepper", "p": 0.99}}, ["corruption.p"]),
    "top k": ({"code": {"kind": "top_k", "k": 2}}, ["code.k"]),
    "revived": (
        {
            "code": {"kind": "top_k", "k": 1},
            "penalties": [{"kind": "aux_k", "k": 1, "dead_after_steps": 50}],
        },
        ["code.k", "penalties.0.weight", "penalties.0.k", "penalties.0.dead_after_steps"],
    ),
    "nested": (
        {"penalties": [{"kind": "nested", "widths": [1]}]},
        ["penalties.0.widths.0", "penalties.0.weight"],
    ),
    "batch top k": ({"code": {"kind": "batch_top_k", "k": 2}}, ["code.k"]),
    "alive downwards only": (
        {
            "network": {"widths": [8, 4], "code_activation": "relu"},
            "code": {"kind": "batch_top_k", "k": 2},
        },
        ["code.k"],
    ),
    "hashing": ({"code": {"kind": "gaussian_noise", "sd": 4.0}}, ["code.sd"]),
    "variational": (
        {
            "code": {"kind": "gaussian_posterior"},
            "penalties": [{"kind": "kl_prior", "beta": 0.1, "warmup_steps": 10}],
        },
        ["penalties.0.beta", "penalties.0.warmup_steps"],
    ),
    "a warm-up of 0 is off": (
        {
            "code": {"kind": "gaussian_posterior"},
            "penalties": [{"kind": "kl_prior", "beta": 0.1}],
        },
        ["penalties.0.beta"],
    ),
    "huber": ({"loss": {"kind": "huber", "delta": 0.1}}, ["loss.delta"]),
    "correntropy": ({"loss": {"kind": "correntropy"}}, ["loss.sigma"]),
    "penalties": (
        {
            "penalties": [
                {"kind": "sparsity_kl", "rho": -0.9, "beta": 0.1},
                {"kind": "code_l1", "weight": 0.1},
                {"kind": "code_l2", "weight": 0.1},
                {"kind": "weights_l1", "weight": 0.1},
                {"kind": "weights_l2", "weight": 0.1},
                {"kind": "contractive", "weight": 0.1, "probes": 2},
            ]
        },
        [
            "penalties.0.rho",
            "penalties.0.beta",
            *(f"penalties.{i}.weight" for i in range(1, 6)),
            "penalties.5.probes",
        ],
    ),
    "adversary": (
        {
            "preset": "adversarial",
            "adversary": {"widths": [8, 4], "prior": {"kind": "mixture", "components": 3}},
        },
        [
            "adversary.weight",
            "adversary.widths.0",
            "adversary.widths.1",
            "adversary.lr",
            "adversary.prior.components",
            "adversary.prior.radius",
            "adversary.prior.sd",
        ],
    ),
    "adversary with its defaults": (
        {"preset": "adversarial", "adversary": {"widths": []}},
        ["adversary.weight", "adversary.lr", "adversary.prior.sd"],
    ),
    "adversary of a bounded code": (
        {"adversary": {"widths": [8], "prior": {"kind": "uniform", "low": -0.5}}},
        [
            "adversary.weight",
            "adversary.widths.0",
            "adversary.lr",
            "adversary.prior.low",
            "adversary.prior.high",
        ],
    ),
    "dropout": ({"network": {"widths": [8, 3], "dropout": 0.1}}, ["network.dropout"]),
}


def checked(model: dict[str, Any], rows: Any = ROWS) -> list[dict[str, Any]]:
    made = job(model)
    module = build(made, measure(rows))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = check_sensitivity(module, memory_loader(made, rows), CPU)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    return found


@pytest.mark.parametrize("name", ALIVE)
def test_every_number_is_tried_and_moves_something(name: str) -> None:
    model, paths = ALIVE[name]
    found = checked(model)
    assert [one["hyperparameter"] for one in found] == [f"model.{path}" for path in paths]
    assert all(one["moved"] > 0 for one in found)
    assert all(one["tried"] != one["value"] for one in found)
    assert found == checked(model)


@pytest.mark.parametrize(
    ("forgotten", "instead", "line"),
    [
        ("torch.optim.Adam.step", lambda self: None, "model.adversary.lr: 0.005"),
        (
            "hourglass.model.adversary.Gaussian.draw",
            lambda self, rows, units, rng: torch.zeros(rows, units),
            "model.adversary.prior.sd: 1.0",
        ),
    ],
    ids=["a discriminator that does not learn", "draws of another prior"],
)
def test_one_of_an_adversary_without_effect_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, forgotten: str, instead: Any, line: str
) -> None:
    monkeypatch.setattr(forgotten, instead)
    with pytest.raises(SpecError) as caught:
        checked({"preset": "adversarial"})
    assert [one.partition(" does nothing")[0] for one in str(caught.value).split("\n")] == [line]


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ({"loss": {"kind": "huber", "delta": 100.0}}, "model.loss.delta: 100.0"),
        ({"corruption": {"kind": "zeros", "p": 0.2}}, "model.corruption.p: 0.2"),
    ],
    ids=["no error reaches delta", "rows of zeros have nothing to mask"],
)
def test_one_without_effect_is_refused_by_name(model: dict[str, Any], line: str) -> None:
    rows = ROWS * 0 + 5.0 if "corruption" in model else ROWS  # range scaling takes the mean away
    with pytest.raises(SpecError) as caught:
        checked(model, rows)
    assert str(caught.value).startswith(f"{line} does nothing: with ")
    assert "two batches of rows give the same losses and gradients" in str(caught.value)


def test_one_without_effect_ends_the_run_before_it_begins(tmp_path: Path) -> None:
    """No epoch, no checkpoint, no artifact."""
    made, printed = job({"loss": {"kind": "huber", "delta": 1000.0}}), []
    schema = FeatureSchema(vector="x", columns=(), width=12, dtype="float32")
    run = Run(made, schema, measure(ROWS), str(tmp_path / "run"), "data", {})
    with pytest.raises(SpecError, match=r"model\.loss\.delta: 1000\.0 does nothing"):
        complete(
            run,
            memory_loader(made, ROWS),
            SingleProcessGroup(),
            CPU,
            lambda *words: printed.append(words),
        )
    assert (printed, list(tmp_path.iterdir())) == ([], [])


UNWATCHED = (
    "{} watches the holdout error, but none of the 6 rows is held out; "
    "raise data.holdout, or remove it"
)


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reads nothing: this process does."""

    def load(rows: Any, keep_features: bool, watched: Any) -> tuple[DatasetStatistics, list[Any]]:
        items = rows.groups
        tables = list(_ReadAll(rows, keep_features, tuple(watched))(items))
        return _merged([row for table in tables for row in table.to_pylist()]), tables

    monkeypatch.setattr(reading, "load", load)
    monkeypatch.setattr("ray.get", lambda table: table)


@pytest.fixture
def measured(read_here: None, tmp_path: Path) -> Callable[..., Any]:
    """`measured(job)` is what a run learns of six rows in a shard, read in this process."""
    path = tmp_path / "shard.parquet"
    lists = pa.array(generated(6).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"x": lists}), path, write_page_checksum=True)
    dataset = open_dataset(str(path))
    return lambda made: prepare(made, dataset)


def of_sweep(space: dict[str, Any]) -> TuneJob:
    base = dump(job())
    sweep = parse({"kind": "tune", "base": base, "space": space, "metric": "train_mse"})
    assert isinstance(sweep, TuneJob)
    return sweep


def test_early_stop_without_held_out_rows_is_refused(measured: Callable[..., Any]) -> None:
    """With a holdout of a tenth, none of these six rows is in it."""
    assert measured(job()).record["holdout_rows"] == 0
    with pytest.raises(SpecError) as caught:
        measured(job(early_stop={"patience": 3}))
    assert str(caught.value) == UNWATCHED.format("train.early_stop")
    tree = dump(job(early_stop={"patience": 3}))
    tree["data"]["holdout"] = 0.5
    assert measured(parse(tree)).record["holdout_rows"] > 0


@pytest.mark.parametrize("path", ["train.early_stop", "train.early_stop.patience"])
def test_early_stop_of_a_space_without_held_out_rows_is_refused(
    measured: Callable[..., Any], path: str
) -> None:
    values = [{"patience": 3}] if path.endswith("stop") else [1, 2]
    found = measured(job())
    dataset = open_dataset([shard.path for shard in found.rows.shards])
    with pytest.raises(SpecError) as caught:
        _ = SharedRows(of_sweep({path: {"grid": values}}), dataset).loaded
    assert str(caught.value) == UNWATCHED.format(f"space.{path}")
    other = of_sweep({"train.optimizer.lr": {"grid": [0.1]}})
    assert len(SharedRows(other, dataset).loaded.train) == 6


def table_job(**data: Any) -> TrainJob:
    tree = dump(job())
    tree["data"] |= {"features": {"columns": ["*"]}, **data}
    tree["model"]["network"]["widths"] = [2]
    made = parse(tree)
    assert isinstance(made, TrainJob)
    return made


def test_a_run_warns_of_columns_from_a_glob_that_are_probably_not_features(
    read_here: None, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).normal(size=300)
    table = {"id": np.arange(300) + 7, "same": np.full(300, 2.5), "x": x, "__index_level_0__": x}
    pq.write_table(pa.table(table), tmp_path / "a.parquet", write_page_checksum=True)
    dataset = open_dataset(str(tmp_path / "a.parquet"))
    with pytest.warns(UserWarning, match="probably not features") as caught:
        prepare(table_job(), dataset)
    assert str(caught[0].message) == (
        "features.columns: a glob chose columns that are probably not features: 'id' (near-unique "
        "whole numbers, as ids are), 'same' (constant), '__index_level_0__' (the index of a table); to "
        "exclude them: "
        '`exclude: ["id", "same", "__index_level_0__"]`'
    )
    with pytest.warns(UserWarning, match="probably not features: 'id'") as caught:
        prepare(table_job(constant="drop"), dataset)
    assert "same" not in str(caught[0].message)
    named = {"features": {"columns": ["id", "same", "x", "__index_level_0__"]}}
    with warnings.catch_warnings(action="error", category=UserWarning):
        prepare(table_job(**named), dataset)
        prepare(table_job(features={"columns": ["*"], "exclude": ["[!x]*"]}), dataset)
