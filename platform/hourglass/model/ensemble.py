"""The score of several models of the same rows, trained alike but for their seed.

An autoencoder trained again finds other errors, and so other outliers; the mean or the maximum of
the errors of several is steadier than one model's.
Source: Michelucci 2022, "An introduction to autoencoders", section 3.3.1.
Shapes: M members, B rows, F features in model space.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.output import ForwardOutput

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
