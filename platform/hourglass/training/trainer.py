"""Ray Train's trainer, less two processes that a run of ours has no use for (ADR 0014), and its Ctrl-C."""

from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from hourglass.process import deferred

# One deals datasets out, and workers read theirs themselves; the other frees, by way of the dashboard,
# what workers reserved when their controller is lost, and `launch.distribute` does that.
_NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(TorchTrainer):  # type: ignore[misc]
    """Starts a run with fewer processes beside its workers, and ends them when it is interrupted."""

    _controller: Any = None

    def fit(self) -> Any:
        """Run the workers to their end; raises KeyboardInterrupt with none of them left."""
        try:
            return super().fit()
        except KeyboardInterrupt:
            if self._controller is not None:
                with deferred():
                    ray.kill(self._controller)  # and with it the workers, which are its own
            raise

    def _create_default_callbacks(self) -> list[Any]:
        every = super()._create_default_callbacks()
        return [callback for callback in every if not isinstance(callback, _NEEDLESS)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray's handler would end the whole process from inside, without a word and with code 1."""
        self._controller = controller
