"""Where runs are recorded and models registered; nothing outside this room imports MLflow."""

from hourglass.tracking.tracker import Finished, Outbox, Tracker, start

__all__ = ["Finished", "Outbox", "Tracker", "start"]
