"""A row's bits do not depend on its place in a tile: several hundred shapes, and the warning without it."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from hourglass.inference.predictor import PLACES, TILE, Predictor

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 16, 17, 31, 32, 33, 64, 65, 100)
NETWORKS: dict[str, dict[str, Any]] = {
    "dense": {"widths": [7, 5]},
    "dense odd": {"widths": [33, 11, 3]},
    "dense tied": {"widths": [9, 5], "tied": True},
    "conv": {"kind": "conv", "shape": [12, 1], "layers": [{"channels": 5}], "code": 3},
    "conv pictures": {
        "kind": "conv",
        "shape": [4, 3, 1],
        "layers": [{"channels": 7, "stride": 2}],
        "code": 5,
        "up": "transposed",
    },
    "lstm": {"kind": "lstm", "shape": [4, 3], "hidden": 11, "code": 5},
}
COUNT = """
import json, sys, warnings
import hourglass
import torch
from torch.nn import functional
from hourglass.inference.predictor import TILE, Predictor

torch.set_num_threads(1)

def depends(inputs, outputs, dtype):
    torch.manual_seed(0)
    tile = torch.randn(1, inputs, dtype=dtype).repeat(TILE, 1)
    weight, bias = torch.randn(outputs, inputs, dtype=dtype), torch.randn(outputs, dtype=dtype)
    made = functional.linear(tile, weight, bias)
    return not torch.equal(made, made[:1].expand_as(made))

found = {"broken": sum(depends(5, width, torch.float32) for width in range(1, 40)), "models": {}}
for path in sys.argv[1:]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        predictor = Predictor.load(path)
    torch.manual_seed(1)
    row = torch.randn(1, 12)
    with torch.inference_mode():
        made = predictor.module(row.repeat(TILE, 1)).output_BF
    differs = not torch.equal(made, made[:1].expand_as(made))
    found["models"][path] = [differs, any("by its place" in str(w.message) for w in said)]
print(json.dumps(found))
"""


def alone(code: str, *arguments: str, **variables: str) -> str:
    """What a new process prints."""
    kept = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=kept | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_of_several_hundred_shapes_round_every_place_alike(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    broken = []
    for inputs in SIZES:
        for outputs in SIZES:
            weight, bias = (
                torch.randn(outputs, inputs, dtype=dtype),
                torch.randn(outputs, dtype=dtype),
            )
            tile = torch.randn(1, inputs, dtype=dtype).repeat(TILE, 1)
            made = functional.linear(tile, weight, bias)
            if not torch.equal(made, made[:1].expand_as(made)):
                broken.append((inputs, outputs))
    assert broken == []


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_a_row_the_same_bits_at_every_place(
    name: str, save_artifact: Callable[..., str], tmp_path: Path, rows: Any
) -> None:
    model = {"network": NETWORKS[name]}
    save_artifact(tmp_path, model=model, ensemble={"members": 2, "primary": 1, "combine": "mean"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictor = Predictor.load(str(tmp_path))
    tile = torch.from_numpy(rows[:TILE].copy())
    with torch.inference_mode():
        for member in predictor.members:
            plain = member(tile)
            for shift in (1, 17, 40):
                turned = member(tile.roll(shift, 0))
                assert torch.equal(turned.code_BK, plain.code_BK.roll(shift, 0))
                assert torch.equal(turned.output_BF, plain.output_BF.roll(shift, 0))


def test_importing_hourglass_tells_mkl_unless_you_did() -> None:
    says = "import os, hourglass; print(os.environ['MKL_CBWR'])"
    assert alone(says) == "AUTO"
    assert alone(says, MKL_CBWR="COMPATIBLE") == "COMPATIBLE"


def test_a_model_is_loaded_with_a_warning_where_places_round(
    save_artifact: Callable[..., str], tmp_path: Path
) -> None:
    """The control: switched off, on a CPU that needs it, models differ by place and loading says which."""
    for name in ("dense", "dense odd"):
        save_artifact(tmp_path / name.replace(" ", "-"), model={"network": NETWORKS[name]})
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    on, off = (json.loads(alone(COUNT, *paths, MKL_CBWR=mode)) for mode in ("AUTO", "OFF"))
    assert on == {"broken": 0, "models": {path: [False, False] for path in paths}}
    for differs, warned in off["models"].values():
        assert warned == differs


def test_the_warning_comes_from_the_answers(
    save_artifact: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_artifact(tmp_path)
    plain = Predictor.load(str(tmp_path))
    forward = type(plain.module).forward

    def by_place(self: Any, rows: torch.Tensor, rng: Any = None) -> Any:
        made = forward(self, rows, rng)
        last = made.output_BF.clone()
        last[-1, 0] = torch.nextafter(last[-1, 0], torch.tensor(torch.inf))
        return made._replace(output_BF=last)

    monkeypatch.setattr(type(plain.module), "forward", by_place)
    with pytest.warns(UserWarning) as printed:
        Predictor.load(str(tmp_path))
    assert [str(warning.message) for warning in printed] == [PLACES.format("cpu")]
