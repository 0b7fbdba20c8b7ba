"""Pretraining without Ray: it learns, unrolls, repeats itself to the bit, resumes, splits over workers."""

import re
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from hourglass import Autoencoder
from hourglass.config.train import TrainJob
from hourglass.data import stats
from hourglass.data.loader import MemoryLoader
from hourglass.errors import SpecError, TrainingError
from hourglass.model import rbm
from hourglass.model.noise import Noise
from hourglass.training import phases
from hourglass.training.build import build
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import ProcessGroup, SingleProcessGroup
from hourglass.training.members import begin
from hourglass.training.phases import pretrain
from hourglass.training.state import State

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import (
    CPU,
    Run,
    Stop,
    fresh,
    generated,
    held_out,
    job,
    memory_loader,
    ready,
    same_bits,
    stream_loader,
    timeless,
    weights,
)


def patterns(rows: int = 300, columns: int = 12) -> np.ndarray:
    """Four patterns of 0 and 1, with 5 % of the bits flipped."""
    rng = np.random.default_rng(3)
    clean = (rng.random((4, columns)) < 0.5)[rng.integers(0, 4, rows)]
    return (clean ^ (rng.random(clean.shape) < 0.05)).astype(np.float32)


ROWS, BITS = generated(), patterns()
GREEDY = {"kind": "greedy", "epochs": 4, "lr": 0.01}
RBM = {"kind": "rbm", "epochs": 20, "lr": 0.5, "k": 2}
TANH = {"network": {"widths": [8, 5, 3]}}
SIGMOID = {"network": {"widths": [8, 5, 3], "activation": "sigmoid"}}
LINEAR_CODE = {"network": SIGMOID["network"] | {"code_activation": "linear"}}
JOBS: dict[str, dict[str, Any]] = {
    "greedy": {"model": TANH, "phases": [GREEDY]},
    "greedy tied": {"model": {"network": TANH["network"] | {"tied": True}}, "phases": [GREEDY]},
    "rbm": {"model": SIGMOID, "scaling": "unit", "phases": [RBM]},
    "rbm linear code": {"model": LINEAR_CODE, "scaling": "unit", "phases": [RBM]},
    "rbm tied": {
        "model": {"network": SIGMOID["network"] | {"tied": True}},
        "scaling": "unit",
        "phases": [RBM],
    },
    "rbm gaussian": {
        "model": LINEAR_CODE,
        "scaling": "standard",
        "phases": [RBM | {"visible": "gaussian", "visible_lr": 0.01}],
    },
    "rbm, then greedy": {"model": SIGMOID, "scaling": "unit", "phases": [RBM, GREEDY]},
}


def rows_of(made: TrainJob) -> np.ndarray:
    """Bits where the row's units are logistic."""
    return BITS if made.data.scaling.kind == "unit" else ROWS


def pretrained(
    made: TrainJob, printed: list[str] | None = None, loader: Any = memory_loader
) -> State:
    """The state after the phases."""
    now = fresh(made, rows_of(made))
    lines = [] if printed is None else printed
    pretrain(
        now.module, loader(made, rows_of(made)), made.train, SingleProcessGroup(), lines.append, CPU
    )
    return now


def errors(printed: list[str]) -> dict[tuple[int, int], list[float]]:
    """Of each (phase, layer), one for each epoch."""
    found: dict[tuple[int, int], list[float]] = {}
    for line in printed:
        match = re.fullmatch(
            r"phase (\d) \((?:greedy|rbm)\), layer (\d) of 3, epoch (\d+)/\d+: error (\d\.\d{5})",
            line,
        )
        assert match, line
        place = found.setdefault((int(match[1]), int(match[2])), [])
        place.append(float(match[4]))
        assert len(place) == int(match[3])
    return found


@pytest.mark.parametrize("name", JOBS)
def test_each_layer_learns(name: str) -> None:
    made, printed = job(**JOBS[name]), []
    pretrained(made, printed)
    curves = errors(printed)
    expected = [(p, n) for p in range(1, len(made.train.phases) + 1) for n in (1, 2, 3)]
    assert list(curves) == expected
    for curve in curves.values():
        assert len(curve) in (4, 20)
        assert curve[-1] < curve[0]


def layers(state: State) -> list[tuple[Tensor, ...]]:
    network = state.module.network
    pairs = zip(network.encoder, reversed(list(network.decoder)), strict=True)
    return [(up.weight, up.bias, down.weight, down.bias) for up, down in pairs]


def test_greedy_by_hand() -> None:
    """One epoch on the first layer is Adam on a two-layer network of the same first weights."""
    made = job(TANH, phases=[GREEDY | {"epochs": 1}])
    start = fresh(made, ROWS)
    loader = memory_loader(made, ROWS)
    weight, bias, back, visible = (p.detach().clone() for p in layers(start)[0])
    leaves = [p.requires_grad_() for p in (weight, bias, back, visible)]
    adam = torch.optim.Adam(leaves, 0.01)
    for batch in loader.train(phases.FIRST):
        x = start.module.preprocessing(torch.from_numpy(batch.rows))
        output = torch.tanh(x @ weight.t() + bias) @ back.t() + visible
        adam.zero_grad()
        (output - x).square().mean().backward()
        adam.step()
    found = layers(pretrained(made))[0]
    for one, other in zip(found, leaves, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_layers_above_wait_and_those_below_stay() -> None:
    """After the only epoch of layer 1, the weights of layer 1 are the final ones."""
    made = job(TANH, phases=[GREEDY | {"epochs": 1}])
    now, seen = fresh(made, ROWS), []
    loader = memory_loader(made, ROWS)

    def look(line: str) -> None:
        seen.append([[p.detach().clone() for p in layer] for layer in layers(now)])

    start = [[p.detach().clone() for p in layer] for layer in layers(now)]
    pretrain(now.module, loader, made.train, SingleProcessGroup(), look, CPU)
    for trained, snapshot in enumerate(seen):
        for index in range(3):
            expected = seen[-1][index] if index <= trained else start[index]
            for one, other in zip(snapshot[index], expected, strict=True):
                assert torch.equal(one, other)
        assert not torch.equal(snapshot[trained][0], start[trained][0])


@pytest.mark.parametrize("name", ["rbm", "rbm linear code", "rbm gaussian"])
def test_after_rbm_the_decoder_is_the_encoder_transposed(name: str) -> None:
    now = pretrained(job(**JOBS[name]))
    for weight, _, back, visible in layers(now):
        assert torch.equal(back, weight.t())
        assert visible.abs().max() > 0.0
    assert layers(now)[0][0].abs().max() > 0.1


def test_the_unrolled_network_reconstructs() -> None:
    """Before any finetuning: well below the spread of the bits, which fresh weights are above."""
    # Wide and slow enough that every draw of its noise ends near the same error, on any CPU.
    wide = {"network": {"widths": [12, 8], "activation": "sigmoid"}}
    made = job(wide, "unit", phases=[RBM | {"epochs": 60, "lr": 0.3}])
    rows = torch.from_numpy(BITS)
    errors = [
        float((now.module(rows).output_BF - rows).square().mean().detach())
        for now in (fresh(made, BITS), pretrained(made))
    ]
    spread = float(rows.var(dim=0, correction=0).mean())
    assert errors[0] > spread
    assert errors[1] < 0.5 * spread


def test_rbm_by_hand() -> None:
    """Momentum 0.5, then 0.9 after epoch 5; weight decay on weights only; rates of each layer."""
    fields = {"epochs": 7, "lr": 0.2, "code_lr": 0.01, "weight_decay": 0.05}
    made = job(LINEAR_CODE, "unit", phases=[{"kind": "rbm"} | fields], batch_size=90)
    steps, seen = [], []

    def fixed(machine: rbm.Machine, x: Tensor, k: int, rng: Noise) -> rbm.Statistics:
        steps.append(machine._replace(weight_HV=machine.weight_HV.clone()))
        seen.append((k, x))
        ones = [torch.full_like(value, float(len(x))) for value in machine[:3]]
        return rbm.Statistics(*ones, torch.zeros(len(x)))

    with patch.object(rbm, "contrastive_divergence", fixed):
        now = pretrained(made)
    per_layer = 7 * 3
    assert len(steps) == 3 * per_layer
    assert [(s.visible, s.hidden) for s in steps[::per_layer]] == [
        ("logistic", "logistic"),
        ("logistic", "logistic"),
        ("logistic", "gaussian"),
    ]
    for number, (weight, hidden, _, visible) in enumerate(layers(now)):
        lr = 0.01 if number == 2 else 0.2
        first = steps[number * per_layer].weight_HV
        assert 0.005 < float(first.std()) < 0.02
        w, v_w, b, v_b = first.clone(), torch.zeros_like(first), 0.0, 0.0
        for step in range(per_layer):
            momentum = 0.5 if step < 5 * 3 else 0.9
            v_w = momentum * v_w + lr * (1.0 - 0.05 * w)
            v_b = momentum * v_b + lr
            w, b = w + v_w, b + v_b
        torch.testing.assert_close(weight, w, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(hidden, torch.full_like(hidden, b))
        torch.testing.assert_close(visible, torch.full_like(visible, b))
    x = seen[-1][1]
    assert x.shape == (90, 5)
    assert 0.0 <= float(x.min()) <= float(x.max()) <= 1.0


@pytest.mark.parametrize("name", JOBS)
def test_same_seed_same_bits_another_seed_other_bits(name: str) -> None:
    made = job(**JOBS[name])
    first, second = pretrained(made), pretrained(made)
    assert same_bits(weights(first), weights(second))
    assert not same_bits(weights(first), weights(pretrained(job(**JOBS[name], seed=6))))


@pytest.mark.parametrize("name", ["greedy", "rbm"])
def test_the_epochs_after_it_change_nothing(name: str) -> None:
    """Pretraining counts epochs and steps of its own."""
    short, long = (pretrained(job(**JOBS[name], epochs=epochs)) for epochs in (1, 50))
    assert same_bits(weights(short), weights(long))


def test_no_epoch_and_no_noise_comes_twice() -> None:
    made, asked, seeds = job(**JOBS["rbm, then greedy"]), [], []
    loader = memory_loader(made, BITS)
    drawn_from = phases.noise_seed

    def seed(*key: int) -> int:
        seeds.append(drawn_from(*key))
        return seeds[-1]

    with (
        patch.object(loader, "train", lambda epoch: asked.append(epoch) or iter_of(loader, epoch)),
        patch.object(phases, "noise_seed", seed),
    ):
        pretrain(fresh(made, BITS).module, loader, made.train, SingleProcessGroup(), print, CPU)
    assert asked == [phases.FIRST + n for n in range(3 * 20 + 3 * 4)]
    assert len(set(seeds)) == len(seeds) == 2 * 3 + (3 * 20 + 3 * 4) * 9
    assert max(seeds) < 2**64


def iter_of(loader: MemoryLoader, epoch: int) -> Any:
    return MemoryLoader.train(loader, epoch)


def test_a_streaming_loader_opens_nothing_ahead() -> None:
    """Every stream that pretraining opens is read to its end, and no later epoch is opened early."""
    made, opened = job(**JOBS["greedy"]), []

    def loader(made: TrainJob, rows: np.ndarray) -> Any:
        made_loader = stream_loader(made, rows)
        read = made_loader._read

        def counted(slices: Any) -> Any:
            opened.append("open")
            yield from read(slices)
            opened.append("end")

        (stream,) = made_loader._streams
        stream.plan = stream.plan._replace(read=counted, epochs=4)
        opened.append(made_loader)
        return made_loader

    pretrained(made, loader=loader)
    made_loader, *events = opened
    assert made_loader._streams[0]._open is None
    assert events.count("open") == 3 * 4
    rows = np.concatenate([batch.rows for batch in made_loader.train(phases.FIRST + 7)])
    assert sorted(rows.sum(1)) == pytest.approx(sorted(ROWS[~held_out(len(ROWS))].sum(1)))


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(str(folder), "run", "data", 1)


def whole(
    made: TrainJob, folder: Path, stop: int | None = None, printed: list | None = None
) -> Run:
    """What a worker does: resume or pretrain, then fit; killed when `stop` is committed."""
    rows, saved = rows_of(made), checkpoints(folder)
    run = ready(made, rows)
    lines = [] if printed is None else printed

    def commit(state: State) -> None:
        saved.save(state)
        if state.step == stop:
            raise Stop

    def send(kind: str, payload: Any) -> None:
        lines.append((kind, payload))

    begin(run.state, made.train, run.loader, saved, SingleProcessGroup(), send, CPU)
    if stop == 0:
        return run
    run.fit(commit)
    return run


@pytest.mark.parametrize("stop", [0, 13])
@pytest.mark.parametrize("name", ["greedy", "rbm"])
def test_a_kill_after_pretraining_does_not_repeat_it(name: str, stop: int, tmp_path: Path) -> None:
    made = job(**JOBS[name], checkpoint_every_steps=1)
    undisturbed = whole(made, tmp_path / "whole").state
    if stop:
        with pytest.raises(Stop):
            whole(made, tmp_path / "cut", stop)
    else:
        whole(made, tmp_path / "cut", stop)
    printed: list[tuple[str, Any]] = []
    with patch.object(phases, "_learner", side_effect=AssertionError("pretrained again")):
        again = whole(made, tmp_path / "cut", printed=printed).state
    assert [(kind, payload["step"]) for kind, payload in printed] == [("resumed", stop)]
    assert same_bits(again.tensors(), undisturbed.tensors())
    assert timeless(again.history) == timeless(undisturbed.history)
    assert len(again.history) == 4  # finetune's epochs only


def test_the_finetune_starts_where_the_phases_end(tmp_path: Path) -> None:
    """Pretrained, the first epoch begins lower; what it said are notes."""
    settings = {"epochs": 1, "optimizer": {"kind": "sgd", "lr": 1e-30}}
    printed: list[tuple[str, Any]] = []
    plain = whole(job(TANH, **settings), tmp_path / "plain").records[0]
    after = whole(
        job(TANH, **settings, phases=[GREEDY | {"epochs": 20}]), tmp_path / "after", printed=printed
    ).records[0]
    assert after["loss"] < 0.2 * plain["loss"]
    assert [kind for kind, _ in printed] == ["note"] * 60
    assert checkpoints(tmp_path / "plain")._names()[0] > "00000000.g"  # no phases, no step 0


class Pair:
    """Two workers as two threads: sums in order of rank, so both see the same bits."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=60)
        self._values: list[Any] = [None, None]

    def worker(self, rank: int) -> ProcessGroup:
        pair = self

        class One:
            size = 2

            def __init__(self) -> None:
                self.rank = rank

            def sum(self, value: Tensor) -> Tensor:
                pair._values[rank] = value.detach()
                pair._barrier.wait()
                total = pair._values[0] + pair._values[1]
                pair._barrier.wait()
                return total

            def gather(self, value: Tensor) -> list[Tensor]:
                raise AssertionError("pretraining adds over workers; it gathers nothing")

            def share(self, value: Any) -> list[Any]:
                raise AssertionError("pretraining adds over workers; it shares nothing")

        return One()


def start(made: TrainJob) -> State:
    """Before pretraining, in float64."""
    now = fresh(made, rows_of(made))
    now.module.double()
    return now


def end(now: State, made: TrainJob, group: ProcessGroup, printed: list[str]) -> State:
    """Pretrained on this worker's part of every batch."""
    rows = rows_of(made).astype(np.float64)
    loader = MemoryLoader(
        rows,
        held_out(len(rows)),
        batch_size=made.train.batch_size,
        seed=made.train.seed,
        worker=group.rank,
        workers=group.size,
    )
    pretrain(now.module, loader, made.train, group, printed.append, CPU)
    return now


def both(made: TrainJob) -> list[tuple[State, list[str]]]:
    """The two workers' ends, and what they said."""
    pair = Pair()
    found: list[tuple[State, list[str]]] = [(start(made), []) for _ in range(2)]

    def work(rank: int) -> None:
        now, printed = found[rank]
        end(now, made, pair.worker(rank), printed)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def difference(one: State, other: State) -> float:
    first, second = weights(one), weights(other)
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def no_draw(units: str, mean: Tensor, rng: Noise) -> Tensor:
    """Probabilities in place of draws, which amplify rounding."""
    return mean


@pytest.mark.parametrize("batch_size", [32, 269])  # 269: the last batch has one row, for one worker
@pytest.mark.parametrize("name", JOBS)
def test_two_workers_are_one_process(name: str, batch_size: int) -> None:
    made, printed = job(**JOBS[name], batch_size=batch_size), []
    with patch.object(rbm, "drawn", no_draw):
        alone = end(start(made), made, SingleProcessGroup(), printed)
        (first, lines), (second, others) = both(made)
    assert same_bits(weights(first), weights(second))
    assert difference(first, alone) < 1e-10
    assert lines == others == printed


def test_two_workers_that_draw_are_one_process() -> None:
    """The draws of a row are its own, whoever computes it."""
    made, printed = job(**JOBS["rbm"]), []
    alone = end(start(made), made, SingleProcessGroup(), printed)
    (first, lines), (second, _) = both(made)
    assert same_bits(weights(first), weights(second))
    assert difference(first, alone) < 1e-7
    assert lines == printed


def test_the_comparison_sees_noise_that_belongs_to_a_worker() -> None:
    """Negative control: each worker draws for its own rows only, and not by their place in the batch."""
    made, seed = job(**JOBS["rbm"]), Noise.seed
    alone = end(start(made), made, SingleProcessGroup(), [])
    with patch.object(Noise, "seed", lambda noise, key, *_: seed(noise, key)):
        (first, _), (second, _) = both(made)
    assert same_bits(weights(first), weights(second))
    assert difference(first, alone) > 1e-3


def test_the_comparison_sees_a_worker_that_forgets_the_others() -> None:
    """Negative control: sums that are not added over workers."""
    made = job(**JOBS["greedy"])
    alone = end(start(made), made, SingleProcessGroup(), [])
    with patch.object(Pair, "worker", lambda pair, rank: deaf(rank)):
        (first, _), (second, _) = both(made)
    assert not same_bits(weights(first), weights(second))
    assert difference(first, alone) > 1e-3


def deaf(rank: int) -> ProcessGroup:
    group = SingleProcessGroup()
    group.rank, group.size = rank, 2
    return group


def test_a_rate_far_too_high_stops_with_its_place() -> None:
    made = job(
        LINEAR_CODE,
        "standard",
        phases=[RBM | {"visible": "gaussian", "visible_lr": 1e4, "epochs": 50}],
    )
    with pytest.raises(TrainingError) as error:
        pretrained(made)
    assert re.fullmatch(
        r"stopped in phase 1 \(rbm\), layer 1 of 3, epoch \d+/50: the error is NaN or infinite\. "
        r"Nothing was committed; lower the phase's learning rate or check the rows",
        str(error.value),
    )


def test_rows_outside_the_unit_interval_are_refused() -> None:
    made = job(
        {"network": SIGMOID["network"] | {"output_activation": "sigmoid"}}, "unit", phases=[RBM]
    )
    tree = made.model_dump(mode="json", by_alias=True)
    tree["data"]["scaling"] = {"kind": "divide", "by": 1.0}
    divided = TrainJob.model_validate(tree)
    with pytest.raises(SpecError, match=r"phase rbm needs rows in \[0, 1\], scaling 'divide'"):
        build(divided, stats.measure(ROWS))


def test_the_estimator_takes_phases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"widths": [8, 3], "activation": "sigmoid", "scaling": "unit", "epochs": 2}
    made = Autoencoder(
        **fields, phases=["rbm", {"kind": "greedy", "epochs": 1}], random_state=1, verbose=True
    ).fit(ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("phase 1 (rbm), layer 1 of 2, epoch 1/10: error 0.")
    assert [line.startswith("phase") for line in lines[1:]] == [True] * 22 + [False] * 2
    assert len(made.history_) == 2
    made.save(str(tmp_path / "model"))
    again = Autoencoder.load(tmp_path / "model")
    assert [phase["kind"] for phase in again.phases] == ["rbm", "greedy"]
    assert again.fit(ROWS).encode(ROWS).tolist() == made.encode(ROWS).tolist()
    plain = Autoencoder(**fields, random_state=1).fit(ROWS)
    assert plain.encode(ROWS).tolist() != made.encode(ROWS).tolist()
