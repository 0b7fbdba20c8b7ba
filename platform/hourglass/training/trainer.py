"""Ray Train's trainer, less two processes that a run of ours has no use for (ADR 0014)."""

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

# One deals datasets out, and workers read theirs themselves; the other frees, by way of the dashboard,
# what workers reserved when their controller is lost, and `launch.distribute` does that.
_NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Starts a run with fewer processes beside its workers."""

    def _create_default_callbacks(self) -> list[Any]:
        every = super()._create_default_callbacks()
        return [callback for callback in every if not isinstance(callback, _NEEDLESS)]
