"""Registered models: versions, the aliases challenger and champion, and their artifacts.

A version carries the digest of its artifact. The files of an artifact are taken by the names in its
manifest and checked against that digest; what else the backend stores beside them is not read.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hourglass import storage
from hourglass.errors import ArtifactError, RegistryError, nearest
from hourglass.settings import Settings
from hourglass.tracking.backend import CHAMPION, MANIFEST, Tracker, Version
from hourglass.tracking.locks import locked, private_folder


@dataclass(frozen=True)
class Promoted:
    """A new champion, and the version that was champion before."""

    version: Version
    before: str | None


@dataclass(frozen=True)
class Resolved:
    """A verified artifact folder or URI, with the digest to load it with."""

    path: str
    name: str
    version: str | None
    digest: str


def open_tracker(settings: Settings) -> Tracker:
    """The tracking backend that `settings` choose; nothing is read or written yet."""
    if settings.tracking == "files":
        from hourglass.tracking.files import FilesTracker

        return FilesTracker(settings)
    from hourglass.tracking.mlflow import MlflowTracker

    return MlflowTracker(settings)


def names(settings: Settings) -> list[str]:
    """All registered models, sorted. Raises RegistryError when the backend does not answer."""
    tracker = open_tracker(settings)
    if tracker.empty:
        return []
    with tracker.errors():
        return tracker.names()


def versions(settings: Settings, name: str) -> list[Version]:
    """The versions of one registered model, newest first.

    Raises: RegistryError naming the models there are.
    """
    with _registry(settings) as tracker:
        return _versions(tracker, name)


def version(settings: Settings, name: str, number: str) -> Version:
    """One version. Raises RegistryError naming what exists."""
    return _one(versions(settings, name), name, number)


def champion(settings: Settings, name: str) -> Version | None:
    """The version that is champion; None where there is none yet.

    Raises: RegistryError naming the models there are.
    """
    return next((v for v in versions(settings, name) if CHAMPION in v.aliases), None)


def promote(settings: Settings, name: str, version: str) -> Promoted:
    """Make `version` the champion of `name`, once its artifact is verified.

    Raises: RegistryError for an unknown name or version, ArtifactError for a damaged artifact.
    """
    from hourglass import artifact  # which imports torch

    with _registry(settings) as tracker:
        known = _versions(tracker, name)
        chosen = _one(known, name, version)
        folder, digest = fetch(settings, tracker, chosen)
        artifact.load(str(folder), digest)
        before = next((v.version for v in known if CHAMPION in v.aliases), None)
        with tracker.registering(name):
            tracker.set_alias(name, CHAMPION, chosen.version)
    return Promoted(chosen, before)


def resolve(uri: str, settings: Settings) -> Resolved:
    """The artifact that `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a folder or s3:// URI means.

    A registered artifact is copied once to `<root>/models/<digest>`.
    Raises: RegistryError naming what exists, ArtifactError when the files are not the digest's.
    """
    if not uri.startswith("models:"):
        return _unregistered(uri)
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise RegistryError(
            f"{uri}: write it as models:/NAME@ALIAS (for example models:/mnist@{CHAMPION}) "
            "or models:/NAME/VERSION"
        )
    name, alias, version = match.groups()
    with _registry(settings) as tracker:
        known = _versions(tracker, name)
        chosen = _aliased(known, name, alias) if alias else _one(known, name, version)
        folder, digest = fetch(settings, tracker, chosen)
    return Resolved(str(folder), name, chosen.version, digest)


def attach(settings: Settings, model: Resolved, name: str, text: str) -> str | None:
    """Store `text` as the file `name` of the run that made a registered model; returns the run.

    None when the version came from no run. Raises: RegistryError when the backend does not answer.
    """
    made = version(settings, model.name, str(model.version))
    if made.run_id is not None:
        tracker = open_tracker(settings)
        with tracker.errors():
            tracker.attach(made.run_id, name, text)
    return made.run_id


@contextmanager
def _registry(settings: Settings) -> Iterator[Tracker]:
    """The backend for reading; a store that does not exist is not created."""
    tracker = open_tracker(settings)
    if tracker.empty:
        raise RegistryError(
            f"no model is registered in {settings.root} yet; train one with `track.register` set"
        )
    with tracker.errors():
        yield tracker


def _versions(tracker: Tracker, name: str) -> list[Version]:
    """The versions of a model. Raises: RegistryError naming the models there are."""
    found = tracker.versions(name)
    if found is None:
        known = tracker.names()
        raise RegistryError(
            f"no registered model '{name}'; there is {', '.join(known[:12]) or 'none'}"
            f"{nearest(name, known)}"
        )
    return found


def fetch(settings: Settings, tracker: Tracker, version: Version) -> tuple[Path, str]:
    """A verified copy of a version's artifact, `<root>/models/<digest>`, and its digest.

    Many processes may ask for it at once. Raises: RegistryError, ArtifactError.
    """
    where = f"models:/{version.name}/{version.version}"
    if version.digest is None or not re.fullmatch(r"[0-9a-f]{64}", version.digest):
        raise RegistryError(
            f"{where}: its recorded digest is {version.digest!r}, so its artifact cannot be verified; "
            "register it with hourglass"
        )
    cache = private_folder(settings.root / "models")
    folder = cache / version.digest
    with locked(cache / ".lock"):  # when many replicas start at once, one downloads
        if artifact_problem(folder, version.digest) is None:
            return folder, version.digest
        for left in cache.glob(".*/"):  # left by killed processes
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=cache) as own:
            fresh = private_folder(Path(own) / "artifact")
            tracker.download(version, fresh)
            problem = artifact_problem(fresh, version.digest)
            if problem:
                raise ArtifactError(
                    f"{where}: {problem}; registered is {version.digest[:12]}, the stored files "
                    "were changed"
                )
            if folder.exists():
                shutil.rmtree(folder)
            fresh.rename(folder)
    return folder, version.digest


def artifact_problem(folder: Path, digest: str) -> str | None:
    """Why the files in `folder` are not the artifact `digest`; None when they are."""
    try:
        text = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(text).hexdigest() != digest:
            return "the manifest has another digest"
        for name, record in json.loads(text)["files"].items():
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:
                    return f"{name} has another SHA-256"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    return None


def _one(known: list[Version], name: str, version: str) -> Version:
    for candidate in known:
        if candidate.version == version:
            return candidate
    there = ", ".join(v.version for v in known[:12]) or "none"
    raise RegistryError(f"'{name}' has no version {version}; there is {there}")


def _aliased(known: list[Version], name: str, alias: str) -> Version:
    for candidate in known:
        if alias in candidate.aliases:
            return candidate
    there = {a: v.version for v in known for a in v.aliases}
    listed = ", ".join(f"{a} (version {v})" for a, v in sorted(there.items())) or "none"
    hint = nearest(alias, there)
    if alias == CHAMPION and known:
        hint = f"; `hourglass models promote {name} {known[0].version}` makes one"
    raise RegistryError(f"'{name}' has no alias '{alias}'; there is {listed}{hint}")


def _unregistered(uri: str) -> Resolved:
    try:
        text = storage.read(storage.join(uri, MANIFEST))
        name = json.loads(text)["name"]
    except (FileNotFoundError, NotADirectoryError):
        raise RegistryError(
            f"{uri}: no artifact there ({MANIFEST} is missing); give an artifact's folder, "
            "models:/NAME@ALIAS or models:/NAME/VERSION"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ArtifactError(f"{uri}/{MANIFEST}: not an artifact's manifest") from None
    return Resolved(uri, str(name), None, hashlib.sha256(text).hexdigest())
