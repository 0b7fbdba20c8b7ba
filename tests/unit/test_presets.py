"""Presets are parts: the fields a name stands for, with the file's own over them."""

from typing import Any, get_args

import pytest

from hourglass.errors import SpecError
from hourglass.model.presets import PRESETS, Preset
from hourglass.model.spec import ModelSpec
from hourglass.spec import dump, parse


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
    network = {"widths": [32, 16]} | written_out.pop("network", {})
    assert chosen == model(**written_out, network=network).model_copy(update={"preset": name})


def test_fields_of_the_file_go_over_those_of_the_preset() -> None:
    chosen = model(preset="k_sparse", code={"k": 4}, loss={"kind": "mae"})
    assert (chosen.code.kind, chosen.code.k, chosen.loss.kind) == ("top_k", 4, "mae")
    assert chosen.code_activation == "relu"
    other = model(preset="k_sparse", code={"kind": "gaussian_noise", "sd": 1.0}, penalties=[],
                  network={"widths": [4], "code_activation": "sigmoid"})  # fmt: skip
    assert other.code.model_dump() == {"kind": "gaussian_noise", "sd": 1.0}
    assert model(preset="contractive", penalties=[]).penalties == ()


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
