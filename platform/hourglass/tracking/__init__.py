"""Recording of runs and registry of models, in MLflow or in plain files."""

from hourglass.tracking.backend import Registered
from hourglass.tracking.tracker import Finished, RunRecorder, Sender, again, start

__all__ = ["Finished", "Registered", "RunRecorder", "Sender", "again", "start"]
