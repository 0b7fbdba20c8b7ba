"""What a trial's process runs: the run of one point, on rows that lie in the object store."""

import traceback
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune

from hourglass import storage
from hourglass.data.feed import Features, MemoryFeed
from hourglass.errors import HourglassError
from hourglass.training.collective import Alone
from hourglass.training.complete import Run, complete
from hourglass.tuning.space import one_line


@dataclass(frozen=True)
class Share:
    """What one trial may use of the cluster: CPUs, as many threads, and a GPU or none."""

    cpus: float
    gpu: bool

    @property
    def threads(self) -> int:
        """Threads of torch: the CPUs owned, so that neighbours change nothing."""
        return max(1, int(self.cpus))


def train_trial(
    config: dict[str, Any],
    *,
    runs: dict[str, Run],
    train: Features,
    holdout: Features,
    share: Share,
) -> None:
    """Complete the run that `config` names; report its metrics, or the reason why it failed.

    `train` and `holdout` are views of the object store, which nobody may write to. What would fail
    again is a result; only the loss of this process is for Tune to mend.
    """
    run = runs[config["trial"]]
    torch.set_num_threads(share.threads)
    feed = MemoryFeed.parted(
        train, holdout.copy(), batch_rows=run.job.train.batch_rows, seed=run.job.train.seed
    )
    device = torch.device("cuda" if share.gpu else "cpu")
    try:
        metrics = complete(run, feed, Alone(), device, _quiet)
    except HourglassError as error:
        tune.report({"reason": one_line(error)})
    except Exception as error:  # a trial that fails in a way of its own must not end the sweep
        traceback.print_exc()
        tune.report({"reason": f"{type(error).__name__}: {one_line(error)}"})
    else:
        storage.remove(run.checkpoints.uri)  # the artifact is there, nothing resumes from them
        tune.report({"reason": "", **metrics})


def _quiet(kind: str, payload: Any) -> None:
    """A trial says nothing before its end."""
