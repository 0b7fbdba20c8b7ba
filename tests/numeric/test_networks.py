"""Networks against NumPy and by their laws: shapes, ties, norms, dropout, convolutions, recurrence."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hourglass.model.noise import Noise
from hourglass.model.spec import Network

NETWORK: TypeAdapter[Any] = TypeAdapter(Network)


def spec(**fields: Any) -> Any:
    return NETWORK.validate_python(fields)


def network(features: int, **fields: Any) -> Any:
    torch.manual_seed(0)
    chosen = spec(**fields)
    return chosen.build(features, chosen.code_width).double()


def rows(count: int, features: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, features)))


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        spec(**fields)
    return str(caught.value.errors()[0]["msg"]).removeprefix("Value error, ")


def numpy_of(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


# Dense


def test_tied_layers_are_the_encoders_transposed() -> None:
    tied = network(8, widths=[6, 4], tied=True)
    x, code = rows(5, 8), rows(5, 4)
    (w1, _), (w2, _) = (numpy_of(layer) for layer in tied.encoder)
    b1, b2 = (layer.bias.detach().numpy() + 0.1 for layer in tied.decoder)
    with torch.no_grad():
        for layer in tied.decoder:
            layer.bias += 0.1
    expected = np.tanh(code.numpy() @ w2 + b1) @ w1 + b2
    np.testing.assert_allclose(tied.decode(code).detach(), expected, rtol=1e-12)
    assert [tuple(w.shape) for w in tied.matrices()] == [(6, 8), (4, 6)]
    names = [name for name, _ in tied.named_parameters()]
    assert not any(name.startswith("decoder") and name.endswith("weight") for name in names)
    # One matrix, two uses: the gradient is the sum of both.
    tied.decode(torch.tanh(tied.encode(x))).sum().backward()
    free = network(8, widths=[6, 4])
    with torch.no_grad():
        for mine, theirs in zip(free.encoder, tied.encoder, strict=True):
            mine.weight.copy_(theirs.weight), mine.bias.copy_(theirs.bias)
        for mine, theirs, up in zip(
            free.decoder, reversed(tied.encoder), tied.decoder, strict=True
        ):
            mine.weight.copy_(theirs.weight.t()), mine.bias.copy_(up.bias)
    free.decode(torch.tanh(free.encode(x))).sum().backward()
    for up, down, both in zip(free.encoder, reversed(free.decoder), tied.encoder, strict=True):
        torch.testing.assert_close(up.weight.grad + down.weight.grad.t(), both.weight.grad)


def test_an_activation_for_each_layer_is_mirrored() -> None:
    net = network(6, widths=[5, 4, 3], activation=["relu", "silu", "tanh"])
    x, code = rows(7, 6), rows(7, 3)
    (w1, b1), (w2, b2), (w3, b3) = (numpy_of(layer) for layer in net.encoder)
    silu = lambda v: v / (1 + np.exp(-v))  # noqa: E731
    hidden = silu(np.maximum(x.numpy() @ w1.T + b1, 0) @ w2.T + b2)
    np.testing.assert_allclose(net.encode(x).detach(), hidden @ w3.T + b3, rtol=1e-10)
    (w1, b1), (w2, b2), (w3, b3) = (numpy_of(layer) for layer in net.decoder)
    hidden = np.maximum(silu(code.numpy() @ w1.T + b1) @ w2.T + b2, 0)
    np.testing.assert_allclose(net.decode(code).detach(), hidden @ w3.T + b3, rtol=1e-10)
    outputs = net.encoded(x)
    assert [tuple(o.shape) for o in outputs] == [(7, 5), (7, 4), (7, 3)]
    assert torch.equal(outputs[-1], net.encode(x))


def test_layer_norm_acts_before_the_hidden_activation() -> None:
    net = network(6, widths=[5, 3], norm="layer")
    x = rows(7, 6)
    (w1, b1), (w2, b2) = (numpy_of(layer) for layer in net.encoder)
    pre = x.numpy() @ w1.T + b1
    normed = (pre - pre.mean(1, keepdims=True)) / np.sqrt(pre.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(net.encode(x).detach(), np.tanh(normed) @ w2.T + b2, rtol=1e-10)


def test_batch_norm_learns_figures_and_keeps_them_for_inference_and_lone_rows() -> None:
    net = network(6, widths=[5, 3], norm="batch").train()
    x = rows(64, 6)
    (w1, b1), _ = (numpy_of(layer) for layer in net.encoder)
    pre = x.numpy() @ w1.T + b1
    net.encode(x)
    norm = net.encoder_norms[0]
    np.testing.assert_allclose(norm.running_mean, 0.1 * pre.mean(0), rtol=1e-10)
    lone = net.encode(x[:1])  # in training, but one row has no variance
    torch.testing.assert_close(lone, net.eval().encode(x[:1]))
    torch.testing.assert_close(net.encode(x)[:1], lone)


def test_dropout_is_on_with_a_generator_only_and_seeded() -> None:
    net = network(6, widths=[400, 3], dropout=0.25)
    x = rows(9, 6)

    def hidden(seed: int | None) -> Tensor:
        rng = None if seed is None else Noise().seed(seed)
        return net.encoded(x, rng)[0]

    assert torch.equal(hidden(None), hidden(None))
    assert torch.equal(hidden(1), hidden(1))
    assert not torch.equal(hidden(1), hidden(2))
    dropped = hidden(1) == 0
    assert dropped.double().mean() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(hidden(1)[~dropped], hidden(None)[~dropped] / 0.75)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"widths": [6, 4], "tied": True, "decoder": [5]},
            "tied needs a decoder that mirrors the encoder, found hidden layers [5] after [6, 4]: "
            "remove `decoder`",
        ),
        (
            {"widths": [6, 4], "activation": ["relu"]},
            "activation: 1 names for 2 widths; give one, or one for each",
        ),
        (
            {"widths": [4], "dropout": 0.5},
            "norm and dropout act on hidden layers, and there is none",
        ),
    ],
    ids=["tied", "activations", "dropout"],
)
def test_dense_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    assert refusal(**fields) == message


def test_a_linear_code_finds_the_subspace_of_pca() -> None:
    """Trained to its end on whitened-free rows: principal angles below 1e-3."""
    generator = np.random.default_rng(3)
    mixing = generator.normal(size=(10, 10)) * np.array([5, 3, 2, *[0.3] * 7])[:, None]
    x = torch.from_numpy(generator.normal(size=(400, 10)) @ mixing)
    x = x - x.mean(0)
    net = network(10, widths=[3], activation="linear")
    parameters = list(net.parameters())
    optimizer = torch.optim.LBFGS(parameters, max_iter=2000, tolerance_grad=1e-12,
                                  tolerance_change=1e-16, line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net.decode(net.encode(x)) - x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    _, _, components = np.linalg.svd(x.numpy(), full_matrices=False)
    basis, _ = np.linalg.qr(net.decoder[0].weight.detach().numpy())
    cosines = np.linalg.svd(components[:3] @ basis, compute_uv=False)
    angles = np.arccos(np.clip(cosines, -1, 1))
    assert angles.max() < 1e-3


# Convolutions


def windows(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """A convolution of pictures (B, C, H, W) by the definition, padded by half the kernel."""
    side = weight.shape[-1]
    pad = side // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    high, wide = ((n + 2 * pad - side) // stride + 1 for n in x.shape[2:])
    out = np.empty((len(x), len(weight), high, wide))
    for i in range(high):
        for j in range(wide):
            window = padded[:, :, i * stride : i * stride + side, j * stride : j * stride + side]
            out[:, :, i, j] = np.einsum("bchw,kchw->bk", window, weight) + bias
    return out


def test_convolutions_and_pooling_are_those_of_the_definition() -> None:
    layers = [{"channels": 3, "kernel": 3, "pool": 2}, {"channels": 4, "kernel": 5, "stride": 2}]
    net = network(2 * 9 * 8, kind="conv", shape=[9, 8, 2], layers=layers, code=6)
    x = rows(3, 2 * 9 * 8)
    pictures = x.numpy().reshape(3, 9, 8, 2).transpose(0, 3, 1, 2)
    first = windows(pictures, *numpy_of(net.encoder[0]), 1)[:, :, :8]
    pooled = np.maximum(first.reshape(3, 3, 4, 2, 4, 2).max(axis=(3, 5)), 0)
    second = np.maximum(windows(pooled, *numpy_of(net.encoder[1]), 2), 0)
    w, b = numpy_of(net.to_code)
    np.testing.assert_allclose(net.encode(x).detach(), second.reshape(3, -1) @ w.T + b, rtol=1e-9)


SHAPES = [
    ([12, 12, 1], [{"channels": 4, "stride": 2}, {"channels": 6, "stride": 2}], 5),
    ([14, 10, 1], [{"channels": 4, "pool": 2}, {"channels": 6, "pool": 2}], None),
    ([7, 9, 3], [{"channels": 4, "kernel": 4, "stride": 3}, {"channels": 2, "kernel": 2}], 5),
    ([31, 2], [{"channels": 4, "kernel": 5, "stride": 2}, {"channels": 3, "pool": 2}], None),
]


@pytest.mark.parametrize("up", ["nearest", "transposed"])
@pytest.mark.parametrize("channels", ["first", "last"])
@pytest.mark.parametrize(("shape", "layers", "code"), SHAPES)
def test_the_decoder_comes_back_to_the_shape(
    up: str, channels: str, shape: list[int], layers: Any, code: int | None
) -> None:
    shape = shape if channels == "last" else [shape[-1], *shape[:-1]]
    fields = {"kind": "conv", "shape": shape, "layers": layers, "code": code}
    features = int(np.prod(shape))
    net = network(features, **fields, up=up, channels=channels)
    x = rows(2, features)
    chosen = spec(**fields, channels=channels)
    pre = net.encode(x)
    assert tuple(pre.shape) == (2, chosen.code_width)
    assert tuple(net.decode(pre).shape) == (2, features)
    assert net.encode(x[:0]).shape == (0, chosen.code_width)
    flat = x.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: net.decode(torch.tanh(net.encode(v)))[:, ::7], [flat])


def test_channels_first_and_last_are_the_same_picture() -> None:
    layers = [{"channels": 3, "stride": 2}]
    first = network(60, kind="conv", shape=[3, 4, 5], layers=layers, channels="first")
    last = network(60, kind="conv", shape=[4, 5, 3], layers=layers, channels="last")
    x = rows(2, 60)
    moved = x.reshape(2, 3, 4, 5).permute(0, 2, 3, 1).reshape(2, 60)
    torch.testing.assert_close(first.encode(x), last.encode(moved))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {
                "shape": [4, 4, 1],
                "layers": [{"channels": 2, "pool": 2}, {"channels": 2, "pool": 4}],
            },
            "layers.1: kernel 3, stride 1, pool 4 leave nothing of 2 x 2: it becomes 0 x 0; "
            "pool or stride less",
        ),
        (
            {"shape": [8, 8, 1], "layers": [{"channels": 2, "stride": 4}], "up": "transposed"},
            "layers.0: a transposed convolution of kernel 3 leaves gaps when it grows 4 times, from "
            "2 x 2 to 8 x 8; use a larger kernel, or `up: nearest`",
        ),
    ],
    ids=["nothing-left", "gaps"],
)
def test_layers_that_do_not_fit_are_named_with_both_shapes(fields: Any, message: str) -> None:
    assert refusal(kind="conv", **fields) == message


# LSTM


def by_hand(lstm: Any, x: np.ndarray) -> np.ndarray:
    """States (B, T, H) of a one-layer LSTM. Source: Hochreiter and Schmidhuber 1997, with forget gates."""
    wx, wh = lstm.weight_ih_l0.detach().numpy(), lstm.weight_hh_l0.detach().numpy()
    b = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().numpy()
    h = c = np.zeros((len(x), wh.shape[1]))
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    states = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ wx.T + h @ wh.T + b, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states, axis=1)


@pytest.mark.parametrize("ahead", [0, 2])
def test_lstm_reads_in_order_and_emits_the_last_step_first(ahead: int) -> None:
    net = network(12, kind="lstm", shape=[6, 2], hidden=5, code=3, predict=ahead)
    x, code = rows(4, 12), rows(4, 3)
    steps = x.numpy().reshape(4, 6, 2)[:, : 6 - ahead]
    w, b = numpy_of(net.to_code)
    np.testing.assert_allclose(
        net.encode(x).detach(), by_hand(net.encoder, steps)[:, -1] @ w.T + b, rtol=1e-9
    )
    fed = np.repeat(code.numpy()[:, None], 6 - ahead, axis=1)
    w, b = numpy_of(net.backwards.values)
    expected = (by_hand(net.backwards.lstm, fed) @ w.T + b)[:, ::-1]
    if ahead:
        w, b = numpy_of(net.forwards.values)
        expected = np.concatenate([expected, by_hand(net.forwards.lstm, fed[:, :2]) @ w.T + b], 1)
    np.testing.assert_allclose(net.decode(code).detach(), expected.reshape(4, 12), rtol=1e-9)


def test_lstm_does_not_read_what_it_predicts() -> None:
    net = network(12, kind="lstm", shape=[6, 2], hidden=5, code=3, predict=2)
    x = rows(4, 12)
    changed = x.clone()
    changed[:, 8:] += 1.0
    assert torch.equal(net.encode(x), net.encode(changed))
    changed[:, 7] += 1.0
    assert not torch.equal(net.encode(x), net.encode(changed))


def test_a_shape_that_is_not_the_rows_is_told() -> None:
    for fields in (
        {"kind": "lstm", "shape": [6, 2], "code": 3},
        {"kind": "conv", "shape": [4, 3, 1], "layers": [{"channels": 2}]},
    ):
        with pytest.raises(ValueError, match=r"has 12 features, the rows have 13"):
            network(13, **fields)
    assert refusal(kind="lstm", shape=[6, 2], code=3, predict=6) == (
        "predict: 6 of 6 steps leaves none to read; at most 5"
    )
