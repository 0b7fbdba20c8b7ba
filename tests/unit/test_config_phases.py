"""Phases of pretraining in a job file: defaults, refusals with their reasons, run names."""

from typing import Any

import pytest

from hourglass.config.files import dump, parse
from hourglass.config.phases import Greedy, Rbm
from hourglass.config.train import TrainJob
from hourglass.errors import SpecError

RBM = {"kind": "rbm"}
GREEDY = {"kind": "greedy"}
SIGMOID = {"widths": [8, 3], "activation": "sigmoid"}


def tree(
    phases: list[dict],
    network: dict | None = None,
    scaling: Any = "unit",
    model: dict | None = None,
) -> dict[str, Any]:
    return {
        "kind": "train",
        "data": {
            "uri": "/rows",
            "features": {"vector": "x"},
            "scaling": {"kind": scaling} if isinstance(scaling, str) else scaling,
        },
        "model": {"network": network or SIGMOID, **(model or {})},
        "train": {"phases": phases},
    }


def job(*args: Any, **fields: Any) -> TrainJob:
    made = parse(tree(*args, **fields))
    assert isinstance(made, TrainJob)
    return made


def test_kinds_alone_have_the_articles_numbers() -> None:
    rbm, greedy = job([RBM, GREEDY]).train.phases
    assert rbm == Rbm(
        epochs=10,
        lr=0.1,
        momentum=0.5,
        final_momentum=0.9,
        weight_decay=2e-4,
        k=1,
        visible="logistic",
        visible_lr=1e-3,
        code_lr=1e-3,
    )
    assert greedy == Greedy(epochs=5, lr=1e-3)
    assert [Rbm().momentum_at(epoch) for epoch in (0, 4, 5, 9)] == [0.5, 0.5, 0.9, 0.9]


FITS: dict[str, tuple] = {
    "greedy of any activation": ([GREEDY], {"widths": [8, 3], "tied": True}, "range"),
    "greedy twice": ([GREEDY, {"kind": "greedy", "lr": 1e-4}], None, "standard"),
    "a given decoder that mirrors": ([GREEDY], {"widths": [8, 5, 3], "decoder": [5, 8]}, "range"),
    "gaussian rows": ([RBM | {"visible": "gaussian"}], None, "standard"),
    "a linear code": ([RBM | {"code_lr": 0.01}], SIGMOID | {"code_activation": "linear"}, "unit"),
    "divided images": (
        [RBM],
        SIGMOID | {"output_activation": "sigmoid"},
        {"kind": "divide", "by": 255},
    ),
    "raw rows with bce": ([RBM], None, "none", {"loss": {"kind": "bce"}}),
    "a hashing code": ([RBM], None, "unit", {"code": {"kind": "gaussian_noise", "sd": 1.0}}),
}


@pytest.mark.parametrize("fields", FITS.values(), ids=FITS)
def test_what_fits_is_taken_and_comes_back(fields: tuple) -> None:
    made = job(*fields)
    assert parse(dump(made)) == made


MISTAKES: dict[str, tuple[tuple, str]] = {
    "unknown kind": (
        ([{"kind": "rmb"}],),
        "train.phases.0: found kind 'rmb', did you mean 'rbm'? Allowed: greedy, rbm",
    ),
    "the ordinary training": (
        ([{"kind": "finetune"}],),
        "train.phases.0: found kind 'finetune'. Allowed: greedy, rbm",
    ),
    "unknown field": (
        ([{"kind": "greedy", "epoch": 3}],),
        "train.phases.0.epoch: unknown field, did you mean 'epochs'? Allowed: epochs, kind, lr",
    ),
    "another network": (
        ([GREEDY], {"kind": "lstm", "shape": [2, 3], "code": 2}),
        "train.phases train one layer and its mirror at a time, which network lstm cannot; "
        "use network dense, or remove train.phases",
    ),
    "another decoder": (
        ([GREEDY], {"widths": [8, 3], "decoder": [5]}),
        "train.phases train each layer with its mirror, found decoder layers [5] after [8, 3]: "
        "remove `decoder`",
    ),
    "norm": (
        ([GREEDY], {"widths": [8, 3], "norm": "layer"}),
        "train.phases train each layer by itself, without the norm that would follow it, found "
        "norm: layer; use norm: none",
    ),
    "dropout": (
        ([GREEDY], {"widths": [8, 3], "dropout": 0.25}),
        "train.phases train each layer on the whole output of the layers below, found dropout: 0.25; "
        "use dropout: 0",
    ),
    "a posterior": (
        (
            [GREEDY],
            None,
            "unit",
            {
                "code": {"kind": "gaussian_posterior"},
                "penalties": [{"kind": "kl_prior", "beta": 1.0}],
            },
        ),
        "train.phases train each layer with its mirror, and the layer that ends in the means and "
        "variances of code gaussian_posterior has none; remove train.phases",
    ),
    "rbm after another": (
        ([GREEDY, RBM],),
        "train.phases.1: rbm starts from weights of its own and would undo the phase before it, "
        "'greedy'; keep one rbm, as the first phase",
    ),
    "hidden units that are not logistic": (
        ([RBM], {"widths": [8, 3], "activation": ["tanh", "sigmoid"]}),
        "phase rbm has logistic hidden units, which needs hidden layers of activation sigmoid, "
        "found 'tanh'; set network.activation",
    ),
    "a code that is neither": (
        ([RBM], SIGMOID | {"code_activation": "tanh"}),
        "phase rbm needs a linear code (gaussian units) or a sigmoid one (logistic units), "
        "found 'tanh'; set network.code_activation",
    ),
    "logistic units of other rows": (
        ([RBM], None, "range"),
        "phase rbm: logistic visible units need features in [0, 1], found scaling 'range'; "
        "set data.scaling to {kind: unit}, or use visible: gaussian with scaling standard",
    ),
    "gaussian units of other rows": (
        ([RBM | {"visible": "gaussian"}],),
        "phase rbm: gaussian visible units have unit variance, which needs scaling standard, "
        "found 'unit'",
    ),
    "another output": (
        ([RBM], None, {"kind": "divide", "by": 255}),
        "phase rbm: logistic visible units unroll into a sigmoid output, found 'linear'; "
        "set network.output_activation: sigmoid",
    ),
    "gaussian on both sides": (
        ([RBM | {"visible": "gaussian"}], {"widths": [3], "activation": "linear"}, "standard"),
        "phase rbm: gaussian visible units below a linear code have no lowest energy once their "
        "weights grow; use a sigmoid code, or put a hidden layer between",
    ),
    "a momentum never reached": (
        ([RBM | {"epochs": 5, "final_momentum": 0.8}],),
        "train.phases.0: final_momentum acts after epoch 5, found epochs: 5; set momentum",
    ),
    "a rate of no layer": (
        ([RBM | {"code_lr": 0.01}],),
        "phase rbm: code_lr acts on a linear code, found 'sigmoid'; set lr",
    ),
    "a rate of no row": (
        ([RBM | {"visible_lr": 0.01}],),
        "phase rbm: visible_lr acts on gaussian visible units, found 'logistic'; set lr",
    ),
    "the rate between": (
        (
            [RBM | {"visible": "gaussian", "lr": 0.2}],
            SIGMOID | {"code_activation": "linear"},
            "standard",
        ),
        "phase rbm: lr acts on layers between logistic units, and there is none; "
        "set visible_lr or code_lr",
    ),
    "the other rate of no layer": (
        ([RBM | {"lr": 0.2}], {"widths": [3], "activation": "linear"}),
        "phase rbm: lr acts on layers between logistic units, and there is none; "
        "set visible_lr or code_lr",
    ),
}


@pytest.mark.parametrize(("fields", "message"), MISTAKES.values(), ids=MISTAKES)
def test_one_mistake_is_one_sentence(fields: tuple, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(*fields)
    assert str(caught.value) == f"job: 1 mistake\n  job: {message}"


def test_run_names_depend_on_phases() -> None:
    """And a job without any is named as before there were phases."""
    names = [
        job(phases).run_name
        for phases in ([], [RBM], [GREEDY], [GREEDY] * 2, [GREEDY | {"lr": 0.01}], [RBM, GREEDY])
    ]
    assert len(set(names)) == len(names)
    without = tree([])
    del without["train"]["phases"]
    made = parse(without)
    assert isinstance(made, TrainJob)
    assert made.run_name == names[0]
