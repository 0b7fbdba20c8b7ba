"""Registered models: versions, the aliases challenger and champion, and their artifacts.

A version carries the digest of its artifact as a tag. Whoever uses a version takes the artifact's
files by name and checks them against that digest; what else MLflow stores beside them is not read.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hourglass import storage
from hourglass.errors import ArtifactError, RegistryError, nearest
from hourglass.settings import Settings
from hourglass.tracking.client import answering, client

if TYPE_CHECKING:
    from hourglass.tracking.model import Logged

CHALLENGER = "challenger"
CHAMPION = "champion"
DIGEST_TAG = "hourglass.digest"
METRICS_TAG = "hourglass.metrics"
MANIFEST = "manifest.json"  # the name that `artifact` has as well, which imports torch


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
    """A version that a run registered, now or before, and which one is challenger since."""

    name: str
    version: str
    challenger: str | None

    @property
    def sentence(self) -> str:
        """Which version it is, and whether it is challenger."""
        this = f"{self.name} version {self.version}"
        if self.challenger == self.version:
            return f"{this} is {CHALLENGER}"
        now = f"version {self.challenger}" if self.challenger else "none"
        return f"{this}; {CHALLENGER} is {now}"


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


def register(
    mlflow: Any,
    name: str,
    run_id: str,
    logged: "Logged",
    before: str | None = None,
    again: bool = False,
) -> str:
    """The version of `name` that holds the artifact, made if need be; `challenger` moves to it.

    `before` is the `NAME/VERSION` that the same run registered last, `again` says that it was this
    artifact. Told a second time, the alias stays where it is, also where somebody deleted the version
    and it is made anew, nor does it come back from a newer version of another run.
    """
    from mlflow.exceptions import MlflowException

    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [v.version for v in _stored(mlflow, name) if v.tags.get(DIGEST_TAG) == logged.digest]
    if known:
        version = str(known[0])
    else:
        tags = {DIGEST_TAG: logged.digest, METRICS_TAG: json.dumps(logged.metrics)}
        # The location, not models:/ID: MLflow looks that up in its global store, not in ours.
        made = mlflow.create_model_version(
            name, logged.location, run_id, tags=tags, model_id=logged.model_id
        )
        version = str(made.version)
    this, now = f"{name}/{version}", challenger(mlflow, name)
    if again and before is not None and before.startswith(f"{name}/"):
        moves = before != this and now is None  # made anew, for somebody deleted it
    else:
        newer = now is not None and int(now) > int(version) and before != f"{name}/{now}"
        moves = not known or (before != this and not newer)
    if moves:
        mlflow.set_registered_model_alias(name, CHALLENGER, version)
    return version


def registered(mlflow: Any, name: str, uri: str) -> Registered | None:
    """The version of `name` that holds the artifact at `uri`, whoever registered it."""
    try:
        digest = hashlib.sha256(storage.read(storage.join(uri, MANIFEST))).hexdigest()
    except OSError:  # it has gone, and who was to register it says so
        return None
    known = [v.version for v in _stored(mlflow, name) if v.tags.get(DIGEST_TAG) == digest]
    return Registered(name, str(known[0]), challenger(mlflow, name)) if known else None


def challenger(mlflow: Any, name: str) -> str | None:
    """The version that is challenger."""
    found = mlflow.get_registered_model(name).aliases.get(CHALLENGER)
    return None if found is None else str(found)


def names(settings: Settings) -> list[str]:
    """All registered models, sorted. Raises RegistryError when MLflow does not answer."""
    if _nothing_yet(settings):
        return []
    with answering(settings):
        found = _pages(client(settings).search_registered_models)
        return sorted(model.name for model in found)


def versions(settings: Settings, name: str) -> list[Version]:
    """The versions of one registered model, newest first.

    Raises: RegistryError naming the models there are.
    """
    with _registry(settings) as mlflow:
        return _versions(settings, mlflow, name)


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
    from hourglass import artifact
    from hourglass.tracking.model import fetch

    with _registry(settings) as mlflow:
        known = _versions(settings, mlflow, name)
        chosen = _one(known, name, version)
        folder, digest = fetch(settings, mlflow, chosen)
        artifact.load(str(folder), digest)
        before = next((v.version for v in known if CHAMPION in v.aliases), None)
        mlflow.set_registered_model_alias(name, CHAMPION, chosen.version)
    return Promoted(chosen, before)


def resolve(uri: str, settings: Settings) -> Resolved:
    """The artifact that `models:/NAME@ALIAS`, `models:/NAME/VERSION`, a folder or s3:// URI means.

    A registered artifact is copied once to `<root>/models/<digest>`, also when many processes ask.
    Raises: RegistryError naming what exists, ArtifactError when the files are not the digest's.
    """
    if not uri.startswith("models:"):
        return _unregistered(uri)
    from hourglass.tracking.model import fetch

    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri)
    if match is None:
        raise RegistryError(
            f"{uri}: write it as models:/NAME@ALIAS (for example models:/mnist@{CHAMPION}) "
            "or models:/NAME/VERSION"
        )
    name, alias, version = match.groups()
    with _registry(settings) as mlflow:
        known = _versions(settings, mlflow, name)
        chosen = _aliased(known, name, alias) if alias else _one(known, name, version)
        folder, digest = fetch(settings, mlflow, chosen)
    return Resolved(str(folder), name, chosen.version, digest)


def attach(settings: Settings, model: Resolved, name: str, text: str) -> str | None:
    """Log `text` as the file `name` of the run that made a registered model; returns the run.

    None when the version came from no run. Raises: RegistryError when MLflow does not answer.
    """
    made = version(settings, model.name, str(model.version))
    if made.run_id is not None:
        with answering(settings):
            client(settings).log_text(made.run_id, text, name)
    return made.run_id


@contextmanager
def _registry(settings: Settings) -> Iterator[Any]:
    """A client; a store that was never made is an answer, not a reason to make one."""
    if _nothing_yet(settings):
        raise RegistryError(
            f"no model is registered in {settings.root} yet; train one with `track.register` set"
        )
    with answering(settings):
        yield client(settings)


def _nothing_yet(settings: Settings) -> bool:
    return settings.tracking_uri is None and not (settings.root / "mlflow.db").exists()


def _versions(settings: Settings, mlflow: Any, name: str) -> list[Version]:
    from mlflow.exceptions import MlflowException

    try:
        # The search below answers without aliases, so they come from the model itself.
        aliases = dict(mlflow.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = names(settings)
        raise RegistryError(
            f"no registered model '{name}'; there is {', '.join(known[:12]) or 'none'}"
            f"{nearest(name, known)}"
        ) from None
    found = sorted(_stored(mlflow, name), key=lambda v: -int(v.version))
    return [_version(v, aliases) for v in found]


def _version(stored: Any, aliases: dict[str, Any]) -> Version:
    return Version(
        name=stored.name,
        version=str(stored.version),
        digest=stored.tags.get(DIGEST_TAG),
        aliases=tuple(sorted(a for a, v in aliases.items() if str(v) == str(stored.version))),
        metrics=_metrics(stored.tags.get(METRICS_TAG, "{}")),
        run_id=stored.run_id or None,
        created_ms=int(stored.creation_timestamp),
    )


def _metrics(text: str) -> dict[str, float]:
    """The metrics in a version's tag; none where somebody wrote something else there."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {name: float(value) for name, value in known if type(value) in (int, float)}


def _stored(mlflow: Any, name: str) -> list[Any]:
    return _pages(mlflow.search_model_versions, filter_string=f"name = '{name}'")


def _pages(search: Any, **query: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **query)
        found += page
        token = page.token
        if not token:
            return found


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
    said = ", ".join(f"{a} (version {v})" for a, v in sorted(there.items())) or "none"
    hint = nearest(alias, there)
    if alias == CHAMPION and known:
        hint = f"; `hourglass models promote {name} {known[0].version}` makes one"
    raise RegistryError(f"'{name}' has no alias '{alias}'; there is {said}{hint}")


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
