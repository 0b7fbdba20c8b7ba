"""What a tracking backend is: a store of runs and of registered models, in MLflow or in plain files.

`registry.open_tracker` chooses one. Everything that both must do alike is here or in registry.py.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Event = dict[str, Any]
"""One event of a run, as the outbox has it: `kind`, `time_ms`, and the fields of its kind."""

CHALLENGER = "challenger"
CHAMPION = "champion"
MANIFEST = "manifest.json"  # also in `artifact`, which imports torch


@dataclass(frozen=True)
class Version:
    """One version of a registered model; `digest` is None when hourglass did not register it."""

    name: str
    version: str
    digest: str | None
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    run_id: str | None
    created_ms: int


@dataclass(frozen=True)
class Registered:
    """A version that a run registered, now or earlier, and the version that is challenger since."""

    name: str
    version: str
    challenger: str | None

    @property
    def summary(self) -> str:
        """Which version it is, and whether it is challenger."""
        this = f"{self.name} version {self.version}"
        if self.challenger == self.version:
            return f"{this} is {CHALLENGER}"
        now = f"version {self.challenger}" if self.challenger else "none"
        return f"{this}; {CHALLENGER} is {now}"


@dataclass(frozen=True)
class Logged:
    """A model that a backend stores: its id and place there, and what the artifact in it records.

    `metrics` are those of the kept weights, `history` has those of all epochs.
    """

    model_id: str
    location: str
    digest: str
    metrics: dict[str, float]
    history: tuple[dict[str, float], ...]


class RunWriter(Protocol):
    """Writes the events of one run, each of which may be delivered a second time."""

    run_id: str | None
    registered: Registered | None
    refused: list[str]
    """A message for each event that the backend will never accept."""

    @property
    def run_ids(self) -> dict[str, str]:
        """The runs of a sweep's trials, by trial, as far as this writer knows them."""

    def deliver(self, event: Event) -> None:
        """Write one event. Raises an error of the backend when another attempt may succeed."""

    def forget(self) -> None:
        """Drop what is cached: another process has delivered events of this run since."""

    def recall(self, begin: Event, artifact: Event | None, trials: Collection[str] = ()) -> None:
        """Look up what other writers made: the run of `begin`, those of `trials`, a version."""


class Tracker(Protocol):
    """A store of runs and of registered models; its methods raise the backend's own errors."""

    title: str
    """The backend and its place, without secrets."""

    def writer(self, begin: Event | None) -> RunWriter:
        """A writer that continues with the events after `begin`."""

    @property
    def empty(self) -> bool:
        """True when nothing was ever stored, so that reading must not create a store."""

    def errors(self) -> AbstractContextManager[None]:
        """Raise the backend's own errors as RegistryError, or WriteError for the local disk."""

    def names(self) -> list[str]:
        """All registered models, sorted."""

    def versions(self, name: str) -> list[Version] | None:
        """The versions of a model, newest first; None when there is no such model."""

    def add_version(self, name: str, run_id: str, logged: Logged) -> str:
        """Add a version, and the model if it is the first; the number of the version."""

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let `alias` name this version of the model, and no other."""

    def registering(self, name: str) -> AbstractContextManager[None]:
        """Hold off other registrations of `name`, as far as the backend does not do so itself."""

    def download(self, version: Version, folder: Path) -> None:
        """Copy the artifact's files that its manifest lists; the caller verifies them."""

    def attach(self, run_id: str, name: str, text: str) -> None:
        """Store `text` as the file `name` of a run."""


def register(
    tracker: Tracker,
    name: str,
    run_id: str,
    logged: Logged,
    before: str | None = None,
    again: bool = False,
) -> Registered:
    """The version of `name` that holds the artifact, made if need be; `challenger` moves to it.

    `before` is the `NAME/VERSION` that the same run registered last, and `again` is true when that was
    this artifact. When a registration is repeated, the alias stays where it is, unless the version was
    deleted and is created again; it never returns from a newer version of another run.
    """
    with tracker.registering(name):
        known = tracker.versions(name) or []
        own = [version.version for version in known if version.digest == logged.digest]
        version = own[0] if own else tracker.add_version(name, run_id, logged)
        this, now = f"{name}/{version}", challenger(known)
        if again and before is not None and before.startswith(f"{name}/"):
            moves = before != this and now is None
        else:
            newer = now is not None and int(now) > int(version) and before != f"{name}/{now}"
            moves = not own or (before != this and not newer)
        if moves:
            tracker.set_alias(name, CHALLENGER, version)
    return Registered(name, version, version if moves else now)


def registered(tracker: Tracker, name: str, digest: str) -> Registered | None:
    """The version of `name` that holds the artifact `digest`, of any run."""
    known = tracker.versions(name) or []
    own = [version.version for version in known if version.digest == digest]
    return Registered(name, own[0], challenger(known)) if own else None


def challenger(known: Sequence[Version]) -> str | None:
    """The version that is challenger."""
    return next((v.version for v in known if CHALLENGER in v.aliases), None)


def aliases_of(version: str, aliases: Mapping[str, Any]) -> tuple[str, ...]:
    """The aliases that name `version`, sorted."""
    return tuple(sorted(alias for alias, named in aliases.items() if str(named) == version))


def metrics_of(text: str) -> dict[str, float]:
    """The metrics in the JSON of a version; none where it was edited to something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {name: float(value) for name, value in known if type(value) in (int, float)}
