"""Presets are parts: the fields a name stands for, with the file's own over them."""

from typing import Any, get_args

import jsonschema
import pytest

from hourglass.config.files import dump, parse
from hourglass.config.train import TRAIN, TrainJob
from hourglass.errors import SpecError
from hourglass.model.dense import Dense
from hourglass.model.spec import PRESETS, ModelSpec, Preset


def model(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"network": {"widths": [32, 16]}} | fields)


def test_every_name_has_parts_and_is_documented(pytestconfig: pytest.Config) -> None:
    assert set(PRESETS) == set(get_args(Preset))
    documented = (pytestconfig.rootpath / "docs" / "variants.md").read_text()
    for name in PRESETS:
        assert f"| `{name}` |" in documented


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_same_as_its_parts(name: Preset) -> None:
    chosen = model(preset=name)
    written_out = dict(PRESETS[name])
    network = written_out.pop("network", {}) | {"widths": [32, 16]}
    assert chosen == model(**written_out, network=network).model_copy(update={"preset": name})


def test_fields_of_the_file_go_over_those_of_the_preset() -> None:
    chosen = model(preset="k_sparse", code={"k": 4}, loss={"kind": "mae"})
    assert (chosen.code.kind, chosen.code.k, chosen.loss.kind) == ("top_k", 4, "mae")
    assert chosen.code_activation == "relu"
    other = model(preset="k_sparse", code={"kind": "gaussian_noise", "sd": 1.0}, penalties=[],
                  network={"widths": [4], "code_activation": "sigmoid"})  # fmt: skip
    assert other.code.model_dump() == {"kind": "gaussian_noise", "sd": 1.0}
    assert model(preset="contractive", penalties=[]).penalties == ()


def test_anomaly_is_a_whole_job_that_a_file_may_change() -> None:
    """Widths, loss, trim, ensemble and schedule; what the file says goes over them."""

    def job(model: dict[str, Any], **train: Any) -> TrainJob:
        data = {"uri": "rows", "features": {"vector": "x"}}
        made = parse({"kind": "train", "data": data, "model": model, "train": train})
        assert isinstance(made, TrainJob)
        return made

    usual = job({"preset": "anomaly"})
    assert usual.model.network == Dense(widths=(64, 3))
    assert (usual.model.loss.kind, usual.model.trim) == ("mae", 0.2)
    assert (usual.train.seeds, usual.train.epochs, usual.train.schedule.kind) == (5, 30, "cosine")
    assert parse(dump(usual)) == usual
    own = job({"preset": "anomaly", "trim": 0.0, "network": {"widths": [8, 2]}}, seeds=1, epochs=4)
    assert (own.model.network.code_width, own.model.trim) == (2, 0.0)
    assert (own.train.seeds, own.train.epochs, own.train.schedule.kind) == (1, 4, "cosine")
    assert parse(dump(own)) == own
    plain = job({"network": {"widths": [64, 3]}})
    assert (plain.train.seeds, plain.train.epochs, plain.model.trim) == (1, 10, 0.0)


@pytest.mark.parametrize("name", [None, *PRESETS])
@pytest.mark.parametrize(
    "network", [{}, {"network": {"widths": [32, 16]}}], ids=["none", "network"]
)
def test_the_published_schema_asks_for_a_network_where_validation_does(
    name: Preset | None, network: dict[str, Any]
) -> None:
    """An editor that checks a file by it must not complain about `model: {preset: anomaly}`."""
    model = ({"preset": name} if name else {}) | network
    tree = {"kind": "train", "data": {"uri": "rows", "features": {"vector": "x"}}, "model": model}
    fits = jsonschema.Draft202012Validator(TRAIN.json_schema(by_alias=True)).is_valid(tree)
    assert fits == (bool(network) or name == "anomaly")
    if fits:
        assert parse(tree).kind == "train"
    else:
        with pytest.raises(
            SpecError, match=r"model\.network(\.widths)?: required field is missing"
        ):
            parse(tree)


def test_a_resolved_job_is_the_same_job() -> None:
    job = parse(
        {
            "kind": "train",
            "data": {"uri": "rows", "features": {"vector": "x"}},
            "model": {"preset": "variational", "network": {"widths": [8, 2]}},
        }
    )
    assert parse(dump(job)) == job
    assert dump(job)["model"]["code"] == {"kind": "gaussian_posterior"}


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(SpecError) as caught:
        parse(
            {
                "kind": "train",
                "data": {"uri": "rows", "features": {"vector": "x"}},
                "model": {"preset": "variationl", "network": {"widths": [8, 2]}},
            }
        )
    assert "model.preset: found 'variationl', did you mean 'variational'?" in str(caught.value)
