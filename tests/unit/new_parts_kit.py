"""Parts that a newcomer would add, and a copy of the package with them in it.

Each is one class in one file and one name in its union. None declares more than it must; those of `DECLARED`
say that they can be packed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hourglass

PENALTY = '''
class Loud(PenaltyPart):
    """weight * sum_k |code_k|, mean over rows, as long as it is above a limit."""

    kind: Literal["loud"] = "loud"
    weight: Weight

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        size = context.row_mean(context.result.code_BK.abs().sum(dim=1))
        if size > 0.01:  # which torch.vmap refuses
            return self.weight * size
        return size * 0.0


class Peak(PenaltyPart):
    """weight * max_k |code_k|, mean over rows."""

    kind: Literal["peak"] = "peak"
    unpackable: ClassVar[str] = ""
    weight: Weight

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        return self.weight * context.row_mean(context.result.code_BK.abs().amax(dim=1))


'''
LOSS = '''
class LogCosh(LossPart):
    """log cosh(sharpness * error), mean over features."""

    kind: Literal["log_cosh"] = "log_cosh"
    unpackable: ClassVar[str] = ""
    sharpness: float = Field(1.0, gt=0.0, description="How soon growth is linear.")

    def per_row(self, output_BF: Tensor, pre_BF: Tensor, clean_BF: Tensor) -> Tensor:
        """(1/F) sum_f log cosh(sharpness * error), shape (B,)."""
        return torch.cosh(self.sharpness * (output_BF - clean_BF)).log().mean(dim=1)


'''
CORRUPTION = '''
class Swap(CorruptionPart):
    """Each feature becomes that of another row with probability p."""

    kind: Literal["swap"] = "swap"
    p: Probability = Field(description="Share of features swapped.")

    def corrupt(self, x_BF: Tensor, low_F: Tensor, high_F: Tensor, rng: Noise) -> Tensor:
        """x where a uniform draw is >= p, else that of the row before."""
        if len(x_BF) < 2:
            return x_BF
        draw_BF = rng.uniform(*x_BF.shape)
        return torch.where(draw_BF < self.p, x_BF.roll(1, dims=0), x_BF)


'''
CODE = '''
class Rounded(CodePart):
    """The code in steps of 1 / levels, with the gradient of the unrounded one."""

    kind: Literal["rounded"] = "rounded"
    unpackable: ClassVar[str] = ""
    levels: PositiveInt = Field(description="Steps in a unit's range of 1.")

    def code(self, pre_BP: Tensor, activation: Function, rng: Noise | None) -> Tensor:
        """round(levels * activation(pre)) / levels."""
        exact_BK = activation(pre_BP)
        return exact_BK + ((exact_BK * self.levels).round() / self.levels - exact_BK).detach()


'''
NETWORK = '''"""The gated network: a linear code, through a gate, and back."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hourglass.model.noise import Noise
from hourglass.model.activations import Activation
from hourglass.model.network import Layer, Link, NetworkModule, NetworkPart, Units, count


class Gated(NetworkPart):
    """A linear encoder and a gated decoder."""

    kind: Literal["gated"] = "gated"
    unpackable: ClassVar[str] = ""
    code: Units = Field(description="Units of the code.")
    code_activation: Activation | None = Field(None, description="Activation of the code.")
    output_activation: Literal["auto"] | Activation = Field("auto", description="Of the output.")

    @property
    def code_width(self) -> int:
        """K, the units of the code."""
        return self.code

    def build(self, features: int, pre_units: int) -> "GatedNetwork":
        """The module, with fresh weights."""
        return GatedNetwork(features, pre_units, self.code)


class GatedNetwork(NetworkModule):
    """Encoder and decoder of `Gated`."""

    def __init__(self, features: int, pre_units: int, code: int) -> None:
        super().__init__()
        self.down = nn.Linear(features, pre_units)
        self.up = nn.Linear(code, features)
        self.gate = nn.Linear(code, features)

    def encode(self, x_BF: Tensor, rng: Noise | None = None) -> Tensor:
        """Features (B, F) to the code's pre-activation (B, P)."""
        return self.down(x_BF)

    def decode(self, code_BK: Tensor, rng: Noise | None = None) -> Tensor:
        """Codes (B, K) to the output's pre-activation (B, F)."""
        return self.up(code_BK) * torch.sigmoid(self.gate(code_BK))

    def layers(self) -> list[Layer]:
        """Row, code, output."""
        features, units = self.down.in_features, self.up.in_features
        into, out = Link(("dense",), count(self.down)), Link(("gated",), count(self.up, self.gate))
        return [
            Layer("row", features, f"{features}", role="row"),
            Layer("code", units, f"{units}", links=(into,), role="code"),
            Layer("output", features, f"{features}", links=(out,), role="output"),
        ]
'''
SCHEDULER = '''
class Early(SchedulerSpec):
    """Every trial but the first stops after an epoch."""

    kind: Literal["early"] = "early"
    stops: ClassVar[bool] = True
    after: PositiveInt = Field(description="Epochs that every trial gets.")

    def stop(self, own: Curve, before: Sequence[Curve], epoch: int) -> bool:
        """True after that epoch where there is a trial to compare with."""
        return bool(before) and epoch == self.after


'''

DECLARED: dict[str, Any] = {
    "network": {"kind": "gated", "code": 3, "code_activation": "tanh"},
    "corruption": {"kind": "swap", "p": 0.1},
    "code": {"kind": "rounded", "levels": 8},
    "loss": {"kind": "log_cosh", "sharpness": 2.0},
    "penalties": [{"kind": "peak", "weight": 0.01}],
}
UNDECLARED: dict[str, Any] = {"penalties": [{"kind": "loud", "weight": 0.01}]}
EARLY: dict[str, Any] = {"kind": "early", "after": 1}


def extended(folder: Path) -> Path:
    """A copy of the package in `folder` with the new parts in their files and unions."""
    (source,) = hourglass.__path__
    made = folder / "hourglass"
    shutil.copytree(source, made, ignore=shutil.ignore_patterns("__pycache__"))
    model = made / "model"
    _add(model / "penalties.py", "Penalty", PENALTY, "Loud | Peak")
    _add(model / "losses.py", "Loss", LOSS, "LogCosh")
    _add(model / "corruption.py", "Corruption", CORRUPTION, "Swap")
    _add(model / "code.py", "Code", CODE, "Rounded")
    _add(made / "config" / "search.py", "Scheduler", SCHEDULER, "Early")
    (model / "gated.py").write_text(NETWORK)
    imported = "from hourglass.model.gated import Gated\n\n"
    _add(model / "spec.py", "Network", imported, "Gated")
    return folder


def _add(path: Path, union: str, text: str, names: str) -> None:
    """Write `text` above the union, and `names` into it."""
    found = re.split(rf"(?m)^({union} = Annotated\[\s*)", path.read_text())
    assert len(found) == 3, path
    above, opening, below = found
    path.write_text(f"{above}{text}{opening}{names} | {below}")


def run(package: Path, script: str, *arguments: str, timeout_s: float = 300.0) -> str:
    """What a script prints that imports the package in the folder `package`."""
    paths = os.pathsep.join([str(package), *map(str, _kits())])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _kits() -> list[Path]:
    """Folders of the modules that tests share."""
    tests = Path(__file__).parents[1]
    return [tests / "unit", tests / "training", tests / "ray"]
