"""What a part of a model declares: all that the rest of the package knows about its kind.

A new part is one class in the file of its sort, derived from the base below, and one name in the union at
the foot of that file. It writes what its base leaves open, and declares where it differs from the
defaults, each of which is safe for a part that nobody has looked at. Networks: see `model.network`.
What a forward pass leaves for losses and penalties to read is here too.
Shapes: B rows, F features in model space, K code units, P units before the code part.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from torch import Tensor, nn

from hourglass.model.activations import Activation
from hourglass.model.noise import Noise
from hourglass.strict import Strict

if TYPE_CHECKING:
    from hourglass.model.spec import ModelSpec

RowMean = Callable[[Tensor], Tensor]
"""(B,) -> (): this worker's part of the mean over all rows of the batch; the parts add up to it."""
BatchMean = Callable[[Tensor], Tensor]
"""(B, K) -> (K,): the mean over all rows of the batch, the same on every worker."""


class ForwardOutput(NamedTuple):
    """Everything a loss may read from one forward pass."""

    clean_BF: Tensor
    pre_BP: Tensor
    code_BK: Tensor
    pre_BF: Tensor
    output_BF: Tensor


class Coder(Protocol):
    """The encoder of a model, as penalties on its derivatives and weights see it."""

    def pre_of(self, x_BF: Tensor) -> Tensor:
        """Rows in model space to what the code part takes, (B, P)."""
        ...

    def code_from(self, pre_BP: Tensor) -> Tensor:
        """Codes (B, K), without noise."""
        ...

    def losses_from(self, code_BK: Tensor, clean_BF: Tensor) -> Tensor:
        """The reconstruction loss (B,) of rows decoded from these codes."""
        ...

    def activated(self, pre_BP: Tensor) -> Tensor:
        """The code's activation of every unit, (B, P)."""
        ...

    def output_with(self, pre_BF: Tensor, extra_BK: Tensor) -> Tensor:
        """The output (B, F) with what the decoder makes of `extra_BK` alone added to `pre_BF`."""
        ...

    def matrices(self) -> list[Tensor]:
        """The weights of all layers, without biases and norms; a tied one once."""
        ...

    def only_layer(self) -> Tensor | None:
        """Weights (P, F) when the encoder is a single linear layer."""
        ...


class PenaltyContext(NamedTuple):
    """What a penalty may read: a pass, the model, the step, and means over the whole batch.

    `idle_K` are the steps since each code unit was last active, on any worker.
    """

    result: ForwardOutput
    coder: Coder
    code_low: float
    step: int
    idle_K: Tensor
    rng: Noise
    row_mean: RowMean
    batch_mean: BatchMean


Function = Callable[[Tensor], Tensor]


class Part(Strict):
    """What every part declares."""

    kind: str

    @property
    def unpackable(self) -> str:
        """Why trials with this part cannot train packed (see `tuning.pack`); empty where they can.

        A part that can is made of tensor operations alone, without a Python `if` on their values: it
        is mapped over the members by `torch.vmap`. Of a penalty, the fields that are floats may then
        differ between members, and are tensors.
        """
        return "it does not declare that it can be packed"

    def hyperparameters(self) -> dict[str, float]:
        """By dotted path, the numbers that must have an effect in training: all of them."""
        return numbers(self)

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """Messages about other parts of the model that this one does not work with."""
        yield from ()


class CorruptionPart(Part):
    """What the encoder sees in training. Packed trials draw their noise one by one, so any can be packed."""

    unpackable: ClassVar[str] = ""
    removes_noise: ClassVar[bool] = True
    """True where the model learns to undo something, so that `denoise` has a meaning."""

    def corrupt(self, x_BF: Tensor, low_F: Tensor, high_F: Tensor, rng: Noise) -> Tensor:
        """Rows (B, F) as the encoder sees them; `low_F` and `high_F` bound each feature."""
        raise NotImplementedError


class CodeState(nn.Module):
    """What a code part keeps from batch to batch, as buffers of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.everyone: Function = alone
        """(N,) -> the values of all workers; `alone` where there is one."""

    def forward(self, code_BK: Tensor, part: Any, learning: bool) -> Tensor:
        """The code (B, K) from what `part.code` returned; `learning` is true in training."""
        raise NotImplementedError


def alone(values: Tensor) -> Tensor:
    """The values themselves: there is no other worker."""
    return values


class CodePart(Part):
    """How the code is made from what the encoder ends in."""

    activation: ClassVar[tuple[Activation, str] | None] = None
    """The only activation that it works with, and why; None: any."""
    sparse: ClassVar[bool] = False
    """True where most units are 0 and some may die: the steps since each was active are counted."""
    posterior: ClassVar[bool] = False
    """True where the encoder ends in means and log variances, with N(0, 1) as prior."""
    hash_at_middle: ClassVar[bool] = False
    """True where a bounded unit is a bit at the middle of its range; otherwise at its median."""

    def pre_units(self, units: int) -> int:
        """P for K units of code."""
        return units

    def state(self) -> CodeState | None:
        """A fresh state, where one is kept."""
        return None

    def code(self, pre_BP: Tensor, activation: Function, rng: Noise | None) -> Tensor:
        """The code (B, K); `rng` is given in training, where the part may draw noise."""
        raise NotImplementedError


class LossPart(Part):
    """How far the output of a row is from the clean row."""

    unit_data: ClassVar[bool] = False
    """True where features must lie in [0, 1], which makes the output a sigmoid."""
    squared_error: ClassVar[bool] = False
    """True where the loss is the mean squared error, which then need not be computed again."""

    def per_row(self, output_BF: Tensor, pre_BF: Tensor, clean_BF: Tensor) -> Tensor:
        """The loss (B,); `pre_BF` is the output before its activation."""
        raise NotImplementedError


class PenaltyPart(Part):
    """A term added to the loss."""

    of_prior: ClassVar[bool] = False
    """True where it holds a posterior (see `CodePart.posterior`) to its prior."""

    @property
    def nested_widths(self) -> tuple[int, ...]:
        """Widths at which the first units of the code become a code of their own."""
        return ()

    @property
    def target(self) -> float | None:
        """The mean activation of a code unit that it aims at, if any."""
        return None

    @property
    def dead_after(self) -> int:
        """Steps without use after which it acts on a code unit; 0: it does not look at them."""
        return 0

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        raise NotImplementedError


def numbers(spec: Strict) -> dict[str, float]:
    """Dotted path and value of every number of a spec: its own, then those of specs in it."""
    own: dict[str, float] = {}
    nested: dict[str, float] = {}
    for name, value in spec:
        if isinstance(value, Strict):
            nested |= {f"{name}.{path}": number for path, number in numbers(value).items()}
        several = isinstance(value, tuple)
        for index, number in enumerate(value if several else (value,)):
            if isinstance(number, int | float) and not isinstance(number, bool):
                own[f"{name}.{index}" if several else name] = number
    return own | nested
