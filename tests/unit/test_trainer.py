"""Ray Train's trainer, less what ADR 0014 leaves out: two callbacks by name, and nothing else."""

from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from hourglass.training.launch import Trainer


def callbacks(kind: type, folder: Path) -> list[str]:
    trainer: Any = kind(
        print,
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(name="run", storage_path=str(folder)),
    )
    return [type(callback).__name__ for callback in trainer._create_default_callbacks()]


def test_two_callbacks_are_left_out(tmp_path: Path) -> None:
    theirs, ours = (callbacks(kind, tmp_path) for kind in (TorchTrainer, Trainer))
    assert {*theirs} - {*ours} == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert [name for name in theirs if name in ours] == ours
    assert "BackendSetupCallback" in ours
