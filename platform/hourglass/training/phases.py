"""Pretraining: each layer of a dense network by itself, from the outermost inwards, before `loop.fit`.

A pure function of rows, seed and workers: gradients are sums over this worker's rows, added over the
workers and divided by the rows of the whole batch, so the weights are bit-identical on all workers.
Shapes: B rows of this worker, V units below a layer, H units above it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Adam

from hourglass.config.phases import Greedy, Rbm
from hourglass.config.train import TrainSpec
from hourglass.data.loader import Loader
from hourglass.errors import TrainingError
from hourglass.model import rbm
from hourglass.model.activations import FUNCTIONS
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.noise import Noise
from hourglass.training.collective import ProcessGroup, means
from hourglass.training.step import noise_seed

FIRST = 2**31
"""First number of pretraining epochs and steps: far beyond those of `loop.fit`, so that no order of rows
and no noise is used twice, and independent of `train.epochs`."""
FIRST_SD = 0.01
"""Standard deviation of a Boltzmann machine's initial weights. Source: Hinton 2010, section 8."""

Function = Callable[[Tensor], Tensor]
Learn = Callable[[Tensor, int, int], Tensor]
"""A layer's input (B, V), the rows of the whole batch, the epoch -> the error of each row, (B,)."""


@dataclass(frozen=True)
class Layer:
    """A layer of the encoder and its mirror; `back` is the mirror's own weight, if it has one."""

    weight_HV: Tensor
    hidden_H: Tensor
    back: tuple[Tensor, ...]
    visible_V: Tensor
    up: Function
    down: Function

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """All parameters of the layer."""
        return (self.weight_HV, self.hidden_H, *self.back, self.visible_V)

    def encode(self, x_BV: Tensor) -> Tensor:
        """Input (B, V) to activations (B, H)."""
        return self.up(functional.linear(x_BV, self.weight_HV, self.hidden_H))

    def decode(self, y_BH: Tensor) -> Tensor:
        """Activations (B, H) to a reconstruction of the input, (B, V)."""
        back_VH = self.back[0] if self.back else self.weight_HV.t()
        return self.down(functional.linear(y_BH, back_VH, self.visible_V))


def pretrain(
    module: AutoencoderModule,
    loader: Loader,
    spec: TrainSpec,
    group: ProcessGroup,
    report: Callable[[str], None],
    device: torch.device,
) -> None:
    """Run the phases of `spec` on `module`, in place; `report` receives a line for each epoch.

    Raises: TrainingError on every worker when an error of reconstruction is not finite.
    """
    epochs, steps, rng = count(FIRST), count(FIRST), Noise(device)

    def batches(below: Sequence[Layer]) -> Iterator[tuple[Tensor, int]]:
        for batch in loader.train(next(epochs)):
            rng.seed(noise_seed(spec.seed, next(steps)), batch.start, batch.total)
            yield _inside(module, below, torch.from_numpy(batch.rows).to(device)), batch.total

    for number, phase in enumerate(spec.phases, 1):
        layers = _layers(module)
        for index, layer in enumerate(layers):
            # Every worker draws the same initial weights.
            rng.seed(noise_seed(spec.seed, next(steps)))
            learn = _learner(phase, module, layer, index, len(layers), group, rng)
            for epoch in range(phase.epochs):
                error = _one_epoch(learn, batches(layers[:index]), epoch, group, device)
                place = f"phase {number} ({phase.kind}), layer {index + 1} of {len(layers)}, "
                place += f"epoch {epoch + 1}/{phase.epochs}"
                if not math.isfinite(error):
                    raise TrainingError(
                        f"stopped in {place}: the error is NaN or infinite. Nothing was committed; "
                        "lower the phase's learning rate or check the rows"
                    )
                report(f"{place}: error {error:.5f}")
    module.zero_grad(set_to_none=True)


def _one_epoch(
    learn: Learn,
    batches: Iterator[tuple[Tensor, int]],
    epoch: int,
    group: ProcessGroup,
    device: torch.device,
) -> float:
    """The error of the layer's input, mean over units and the rows of all workers."""
    total, rows = torch.zeros((), dtype=torch.float64, device=device), 0
    for x_BV, batch_size in batches:
        total += learn(x_BV, batch_size, epoch).sum(dtype=torch.float64)
        rows += batch_size
    return float(group.sum(total)) / rows


def _layers(module: AutoencoderModule) -> list[Layer]:
    """Each layer of the encoder, with the activation it ends in and that of its mirror."""
    spec, network = module.spec, module.network
    stack = spec.network.layer_stack
    assert stack is not None  # a job with phases has a network of layers
    hidden = [FUNCTIONS[name] for name in stack.activations]
    ups: list[Function] = [*hidden, module.code_from]
    downs: list[Function] = [FUNCTIONS[spec.output_activation(module.unit_data)], *hidden]
    layers = []
    for (encoder, decoder), up, down in zip(network.mirrored_pairs(), ups, downs, strict=True):
        weight_HV, hidden_H = encoder.parameters()
        *back, visible_V = decoder.parameters()
        layers.append(Layer(weight_HV, hidden_H, tuple(back), visible_V, up, down))
    return layers


@torch.no_grad()
def _inside(module: AutoencoderModule, layers: Sequence[Layer], rows: Tensor) -> Tensor:
    """Outputs (B, V) of the trained layers for clean rows (B, C)."""
    x: Tensor = module.preprocessing(rows)
    for layer in layers:
        x = layer.encode(x)
    return x


def _learner(
    phase: Greedy | Rbm,
    module: AutoencoderModule,
    layer: Layer,
    index: int,
    layers: int,
    group: ProcessGroup,
    rng: Noise,
) -> Learn:
    if phase.kind == "greedy":
        return _greedy(phase, layer, group)
    linear_code = index == layers - 1 and module.spec.code_activation == "linear"
    machine = rbm.Machine(
        layer.weight_HV.detach(),  # shares the memory of the parameters
        layer.hidden_H.detach(),
        layer.visible_V.detach(),
        hidden="gaussian" if linear_code else "logistic",
        visible=phase.visible if index == 0 else "logistic",
    )
    return _rbm(phase, layer, machine, group, rng)


def _greedy(phase: Greedy, layer: Layer, group: ProcessGroup) -> Learn:
    """Adam on the squared error of the layer's input, mean over units and rows."""
    optimizer = Adam(layer.weights, phase.lr, fused=True)

    def learn(x_BV: Tensor, total: int, epoch: int) -> Tensor:
        error_B = (layer.decode(layer.encode(x_BV)) - x_BV).square().mean(dim=1)
        gradients = torch.autograd.grad(error_B.sum(), layer.weights)
        for weight, mean in zip(layer.weights, means(gradients, total, group), strict=True):
            weight.grad = mean
        optimizer.step()
        return error_B.detach()

    return learn


def _rbm(phase: Rbm, layer: Layer, machine: rbm.Machine, group: ProcessGroup, rng: Noise) -> Learn:
    """Contrastive divergence with momentum and weight decay, the mirror's weights kept transposed.

    Source: Hinton 2010, sections 8 to 10.
    """
    values = machine.weight_HV, machine.hidden_H, machine.visible_V
    values[0].copy_(FIRST_SD * rng.normal(*values[0].shape, dtype=values[0].dtype))
    values[1].zero_()
    values[2].zero_()
    speeds = [torch.zeros_like(value) for value in values]
    lr = phase.visible_lr if machine.visible == "gaussian" else phase.lr
    lr = phase.code_lr if machine.hidden == "gaussian" else lr

    @torch.no_grad()
    def learn(x_BV: Tensor, total: int, epoch: int) -> Tensor:
        *sums, error_B = rbm.contrastive_divergence(machine, x_BV, phase.k, rng)
        weight_HV, *biases = means(sums, total, group)
        weight_HV = weight_HV - phase.weight_decay * machine.weight_HV
        for value, speed, mean in zip(values, speeds, [weight_HV, *biases], strict=True):
            value.add_(speed.mul_(phase.momentum_at(epoch)).add_(mean, alpha=lr))
        for back_VH in layer.back:  # the decoder's own weight, if it is not tied
            back_VH.copy_(machine.weight_HV.t())
        return error_B

    return learn
