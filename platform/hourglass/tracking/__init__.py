"""Where runs are recorded and models registered; nothing outside this room imports MLflow."""

from hourglass.tracking.registry import Registered
from hourglass.tracking.tracker import Finished, Outbox, Tracker, again, start

__all__ = ["Finished", "Outbox", "Registered", "Tracker", "again", "start"]
