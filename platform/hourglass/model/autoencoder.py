"""The autoencoder: one module made of the parts a ModelSpec names, and the score of several.

An autoencoder trained again finds other errors, and so other outliers; the mean or the maximum of the
errors of several is steadier than one model's. Source: Michelucci 2022, "An introduction to
autoencoders", section 3.3.1.

Shapes: M members, B rows, C raw columns, F features in model space, K code units, P units before the code
part.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from hourglass.model.activations import CODE_LOW, FUNCTIONS
from hourglass.model.code import prefix
from hourglass.model.network import NetworkModule
from hourglass.model.noise import Noise
from hourglass.model.part import BatchMean, ForwardOutput, PenaltyContext, RowMean
from hourglass.model.preprocessing import Preprocessing
from hourglass.model.spec import ModelSpec


class AutoencoderModule(nn.Module):
    """Raw rows to code and back, as `spec` says; `unit_data` is true when model space is [0, 1].

    `typical_F` is what `scaled_score` divides squared errors by, None without it.
    Raises: ValueError when the network does not fit the number of features.
    """

    typical_F: Tensor | None

    def __init__(self, spec: ModelSpec, preprocessing: Preprocessing, unit_data: bool) -> None:
        super().__init__()
        self.spec = spec
        self.unit_data = unit_data
        self.preprocessing = preprocessing
        units = spec.code.pre_units(spec.network.code_width)
        self.network: NetworkModule = spec.network.build(len(preprocessing.kept_F), units)
        ones_F = torch.ones(len(preprocessing.kept_F)) if spec.scaled_score else None
        self.register_buffer("typical_F", ones_F)  # set after training, by calibration
        self.batch_threshold = spec.code.state()  # an artifact knows it by this name
        self._code_activation = FUNCTIONS[spec.code_activation]
        self._output_activation = FUNCTIONS[spec.output_activation(unit_data)]

    def forward(self, rows_BC: Tensor, rng: Noise | None = None) -> ForwardOutput:
        """One pass over raw rows (B, C); with `rng` the training noise is on, without it is off."""
        clean_BF = self.preprocessing(rows_BC)
        seen_BF = clean_BF if rng is None else self.corrupted(clean_BF, rng)
        return self.passed(clean_BF, seen_BF, rng)

    def corrupted(self, clean_BF: Tensor, rng: Noise) -> Tensor:
        """What the encoder sees of clean rows (B, F) in training."""
        low_F, high_F = self.preprocessing.low_F, self.preprocessing.high_F
        return self.spec.corruption.corrupt(clean_BF, low_F, high_F, rng)

    def passed(self, clean_BF: Tensor, seen_BF: Tensor, rng: Noise | None = None) -> ForwardOutput:
        """The pass of rows in model space of which the encoder sees `seen_BF`; `rng` as in forward."""
        pre_BP = self.network.encode(seen_BF, rng)
        code_BK = self._code(pre_BP, rng)
        pre_BF = self.network.decode(code_BK, rng)
        return ForwardOutput(clean_BF, pre_BP, code_BK, pre_BF, self._output_activation(pre_BF))

    def encode(self, rows_BC: Tensor) -> Tensor:
        """Raw rows (B, C) to codes (B, K)."""
        return self.code_from(self.pre_of(self.preprocessing(rows_BC)))

    def decode(self, code_BK: Tensor) -> Tensor:
        """Codes (B, K) to raw rows (B, C)."""
        return self.preprocessing.inverse(self._output_activation(self.network.decode(code_BK)))

    def pre_of(self, x_BF: Tensor) -> Tensor:
        """Rows in model space to what the code part takes, (B, P)."""
        return self.network.encode(x_BF)

    def code_from(self, pre_BP: Tensor) -> Tensor:
        """Codes (B, K), without noise."""
        return self._code(pre_BP, None)

    def _code(self, pre_BP: Tensor, rng: Noise | None) -> Tensor:
        part = self.spec.code
        code_BK = part.code(pre_BP, self._code_activation, rng)
        if self.batch_threshold is None:
            return code_BK
        return torch.as_tensor(self.batch_threshold(code_BK, part, rng is not None))

    def losses_from(self, code_BK: Tensor, clean_BF: Tensor) -> Tensor:
        """The reconstruction loss (B,) of rows decoded from these codes."""
        pre_BF = self.network.decode(code_BK)
        return self.spec.loss.per_row(self._output_activation(pre_BF), pre_BF, clean_BF)

    def activated(self, pre_BP: Tensor) -> Tensor:
        """The code's activation of every unit, (B, P)."""
        return self._code_activation(pre_BP)

    def output_with(self, pre_BF: Tensor, extra_BK: Tensor) -> Tensor:
        """The output (B, F) with what the decoder makes of `extra_BK` alone added to `pre_BF`."""
        nothing = self.network.decode(torch.zeros_like(extra_BK))
        return self._output_activation(pre_BF + self.network.decode(extra_BK) - nothing)

    def matrices(self) -> list[Tensor]:
        """The weights of all layers, without biases and norms; a tied one once."""
        return self.network.matrices()

    def only_layer(self) -> Tensor | None:
        """Weights (P, F) when the encoder is a single linear layer."""
        return self.network.only_layer()

    def row_losses(self, result: ForwardOutput) -> Tensor:
        """The reconstruction loss of each row, shape (B,)."""
        return self.spec.loss.per_row(result.output_BF, result.pre_BF, result.clean_BF)

    def output_at(self, code_BK: Tensor, width: int) -> Tensor:
        """The output (B, F) from the first `width` units of the code, the others 0."""
        return self._output_activation(self.network.decode(prefix(code_BK, width)))

    def penalties(
        self,
        result: ForwardOutput,
        step: int,
        idle_K: Tensor,
        rng: Noise,
        row_mean: RowMean,
        batch_mean: BatchMean,
    ) -> dict[str, Tensor]:
        """Each weighted penalty by its kind, a scalar each; `idle_K` as in `PenaltyContext`."""
        low = CODE_LOW.get(self.spec.code_activation, 0.0)
        context = PenaltyContext(result, self, low, step, idle_K, rng, row_mean, batch_mean)
        return {penalty.kind: penalty.value(context) for penalty in self.spec.penalties}

    @property
    def default_hash_threshold(self) -> float | None:
        """The middle of a bounded code (0.5 logistic, 0 tanh); None where the code is unbounded."""
        low = CODE_LOW.get(self.spec.code_activation)
        return None if low is None else (low + 1.0) / 2.0


Combine = Literal["mean", "max"]
"""What the scores of a row become."""
MOST_MEMBERS = 100


def squared_error(result: ForwardOutput) -> Tensor:
    """Squared errors (B, F) in model space."""
    return (result.output_BF - result.clean_BF).square()


def scored_error(member: AutoencoderModule, result: ForwardOutput) -> Tensor:
    """What a row's score is the mean of, (B, F): squared errors, scaled by column if asked for."""
    error_BF = squared_error(result)
    return error_BF if member.typical_F is None else error_BF / member.typical_F


def scores(errors: Sequence[Tensor]) -> Tensor:
    """The scores (M, B) of the members, float64: means of their scored errors, (B, F) each."""
    return torch.stack([error_BF.mean(dim=1, dtype=torch.float64) for error_BF in errors])


def combined(score_MB: Tensor, combine: Combine) -> Tensor:
    """The scores (B,) of all members together."""
    return score_MB.amax(dim=0) if combine == "max" else _mean(list(score_MB))


def score_parts(errors: Sequence[Tensor], combine: Combine) -> Tensor:
    """The parts (B, F) that add up to the combined score; with max, those of the highest member."""
    features = errors[0].shape[1]
    if combine == "mean":
        return _mean(errors) / features
    highest_B = scores(errors).argmax(dim=0)
    every_B = torch.arange(len(highest_B), device=highest_B.device)
    return torch.stack(list(errors))[highest_B, every_B] / features


def _mean(values: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape, added in order: a reduction would round by place."""
    return reduce(torch.add, values) / len(values)
