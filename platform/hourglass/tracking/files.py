"""Plain files as the tracking backend, in `<home>/tracking`; JSON files are replaced as a whole.

runs/<run>/run.json           job, params, tags, dataset, status and times; of a trial also its parent
runs/<run>/metrics.jsonl      one line per epoch: its step, time and metrics
runs/<run>/files/             the report, the files of a sweep
artifacts/<digest>/           the artifacts of runs, byte for byte
models/<model>/model.json     versions and aliases of a registered model
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from hourglass import storage
from hourglass.errors import (
    ArtifactError,
    HourglassError,
    ReadError,
    RegistryError,
    WriteError,
    redact,
)
from hourglass.settings import Settings
from hourglass.tracking import backend, records
from hourglass.tracking.backend import Event, Logged, Registered, Version
from hourglass.tracking.locks import locked

RUN, METRICS, MODEL = "run.json", "metrics.jsonl", "model.json"
STATUS = {"finished": "FINISHED", "failed": "FAILED"}
STOPPED = "KILLED"
"""The status of a trial that a scheduler stopped; the words are MLflow's."""


class FilesTracker:
    """The runs and models below the project folder."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.root / "tracking"
        self.title = f"plain files ({self.folder})"

    def writer(self, begin: Event | None) -> backend.RunWriter:
        """A writer that continues with the events after `begin`."""
        return FilesWriter(self, begin)

    @property
    def empty(self) -> bool:
        """True when no model is registered."""
        return not self.names()

    def errors(self) -> nullcontext[None]:
        """Nothing to do: `storage` raises ReadError and WriteError."""
        return nullcontext()

    def names(self) -> list[str]:
        """All registered models, sorted."""
        found = storage.names(str(self.folder / "models"))
        return sorted(unquote(name) for name in found if not name.startswith("."))

    def versions(self, name: str) -> list[Version] | None:
        """The versions of a model, newest first; None when there is no such model."""
        model = _read(self._model(name))
        if model is None:
            return None
        found = [
            Version(
                name=name,
                version=str(one["version"]),
                digest=one["digest"],
                aliases=backend.aliases_of(str(one["version"]), model["aliases"]),
                metrics=backend.metrics_of(json.dumps(one["metrics"])),
                run_id=one["run_id"],
                created_ms=one["created_ms"],
            )
            for one in model["versions"]
        ]
        return sorted(found, key=lambda version: -int(version.version))

    def add_version(self, name: str, run_id: str, logged: Logged) -> str:
        """Add a version, and the model if it is the first; the number of the version.

        Hold `registering` meanwhile.
        """
        model = _read(self._model(name)) or {"last": 0, "aliases": {}, "versions": []}
        model["last"] += 1  # the number of a version that was deleted is not used again
        made = {
            "version": str(model["last"]),
            "digest": logged.digest,
            "metrics": logged.metrics,
            "run_id": run_id,
            "created_ms": _now_ms(),
        }
        _write(self._model(name), model | {"versions": [*model["versions"], made]})
        return str(model["last"])

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let `alias` name this version of the model, and no other. Hold `registering` meanwhile."""
        model = _read(self._model(name))
        if model is None:
            raise RegistryError(f"no registered model '{name}'")
        _write(self._model(name), model | {"aliases": model["aliases"] | {alias: version}})

    @contextmanager
    def registering(self, name: str) -> Iterator[None]:
        """Hold the lock of the registry, waiting for another holder."""
        with _locked(self.folder / "models"):
            yield

    def download(self, version: Version, folder: Path) -> None:
        """Copy the artifact's files that its manifest lists; the caller verifies them."""
        from hourglass import artifact

        stored = self.artifact_folder(str(version.digest))
        try:
            manifest = storage.read(str(stored / artifact.MANIFEST))
            storage.write(str(folder / artifact.MANIFEST), manifest)
            if hashlib.sha256(manifest).hexdigest() == version.digest:  # else the caller refuses it
                for name in artifact.parse_manifest(str(stored), manifest).files:
                    storage.write(str(folder / name), storage.read(str(stored / name)))
        except FileNotFoundError as error:
            raise ArtifactError(
                f"models:/{version.name}/{version.version}: {error.filename} is missing; the stored "
                "files were changed"
            ) from None

    def attach(self, run_id: str, name: str, text: str) -> None:
        """Store `text` as the file `name` of a run."""
        storage.write(str(self.run_folder(run_id) / "files" / name), text.encode())

    def log(self, uri: str) -> Logged:
        """Copy the verified artifact at `uri` into the store, once per digest.

        Raises: ArtifactError when it does not verify.
        """
        from hourglass import artifact

        files = artifact.read(uri)
        loaded = artifact.rebuild(uri, files)
        folder = self.artifact_folder(loaded.digest)
        with _locked(folder.parent):
            if not folder.exists():
                with storage.new_folder(str(folder)) as fresh:
                    for name, content in files.items():
                        storage.write(storage.join(fresh, name), content)
        return Logged(
            model_id=loaded.digest,
            location=str(folder),
            digest=loaded.digest,
            metrics=dict(loaded.manifest.metrics),
            history=tuple(loaded.manifest.provenance.get("history", ())),
        )

    def run_folder(self, run_id: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / run_id

    def artifact_folder(self, digest: str) -> Path:
        """The folder of a stored artifact."""
        return self.folder / "artifacts" / digest

    def _model(self, name: str) -> Path:
        folder = quote(name, safe=" ").replace(".", "%2E")  # `..` is a name as well
        return self.folder / "models" / folder / MODEL


class FilesWriter:
    """Writes the events of one run. A run's id is a hash of what it is found by."""

    def __init__(self, tracker: FilesTracker, begin: Event | None) -> None:
        self.run_id: str | None = None
        self.registered: Registered | None = None
        self.refused: list[str] = []
        self.run_ids: dict[str, str] = {}
        self._tracker, self._begun = tracker, begin
        self._steps: set[int] | None = None

    def deliver(self, event: Event) -> None:
        """Write one event. Raises: ReadError, WriteError, when another attempt may succeed."""
        kind = event["kind"]
        if kind == "begin":  # of another run, where the same job is trained again on other rows
            self._begun, self.run_id, self._steps = event, None, None
            self.run_ids = {}
        if kind == "trials":
            for trial in event["trials"]:
                self._try("trial", partial(self._trial, trial, event["time_ms"]))
        elif kind in self._methods:
            self._try(kind, partial(self._methods[kind], self, event))

    def forget(self) -> None:
        """Drop what is cached: another process has delivered events of this run since."""
        self._steps = None

    def recall(self, begin: Event, artifact: Event | None, trials: Collection[str] = ()) -> None:
        """Look up what other writers made: the run of `begin`, those of `trials`, a version."""
        self._begun, self.run_id = begin, None
        run_id = _run_id(begin)
        if not self._file(run_id).exists():
            return
        self.run_id = run_id
        for trial in trials:
            if self._file(_trial_id(run_id, trial)).exists():
                self.run_ids[trial] = _trial_id(run_id, trial)
        name = artifact and artifact["register_as"]
        if artifact and name and self.registered is None:
            digest = records.artifact_digest(artifact["uri"])
            self.registered = backend.registered(self._tracker, name, digest) if digest else None

    def _try(self, kind: str, write: Callable[[], None]) -> None:
        """Write; an error that another attempt cannot mend becomes a message."""
        try:
            write()
        except (ReadError, WriteError):
            raise
        except HourglassError as error:
            message = redact(f"{kind} refused: {error}")
            if message not in self.refused:
                self.refused.append(message)

    def _begin(self, event: Event) -> None:
        run = _read(self._file(self._run())) or {}
        params, other = records.describe(event["job"])
        kept = run.get("params", params)
        tags = {f"hourglass.{key}": value for key, value in other.items()}
        tags |= {"hourglass.package": str(event["hourglass"]), **event.get("tags", {})}
        changed = sorted(key for key, value in kept.items() if params.get(key) != value)
        if changed or "hourglass.changed" in run.get("tags", {}):
            tags["hourglass.changed"] = ", ".join(changed)
        self._update(
            self._run(),
            name=event.get("shown", event["run"]),
            experiment=event["experiment"],
            run=event["run"],
            started_ms=run.get("started_ms", event["time_ms"]),
            params={**params, **kept},
            tags=run.get("tags", {}) | tags,
            job=json.loads(redact(json.dumps(event["job"]))),
            dataset=json.loads(redact(json.dumps(event["dataset"]))),
            **({} if event.get("ended") else {"status": "RUNNING"}),
        )

    def _epoch(self, event: Event) -> None:
        self._add_epochs([(int(event["epoch"]), event["time_ms"], event["metrics"])])

    def _artifact(self, event: Event) -> None:
        """Store the model of this run, or of the trial that the event names, and register it."""
        whole, of = self._run(), event.get("trial")
        run_id = whole if of is None else _trial_id(whole, of)
        if of is not None and not self._file(run_id).exists():
            raise RegistryError(f"trial {of} has no run, so its model is not logged")
        logged = self._tracker.log(event["uri"])
        run = _read(self._file(run_id)) or {}
        if of is None:
            start = int(run.get("started_ms") or event["time_ms"])
            epochs = records.over_time(logged.history, start, event["time_ms"])
            self._add_epochs([(step, at, records.named(record)) for step, at, record in epochs])
        stored = {"uri": redact(event["uri"]), "digest": logged.digest}
        metrics = run.get("metrics", {}) | logged.metrics
        self._update(run_id, metrics=metrics, artifact=stored)
        name = event["register_as"]
        if name:
            last = (_read(self._file(whole)) or {}).get("registered", {})
            again = last.get("digest") == logged.digest
            made = backend.register(self._tracker, name, run_id, logged, last.get("version"), again)
            self._update(
                whole, registered={"version": f"{name}/{made.version}", "digest": logged.digest}
            )
            self.registered = made

    def _trial(self, trial: dict[str, Any], time_ms: int) -> None:
        """Write the run of a trial that has ended, whole."""
        parent, name = self._run(), trial["trial"]
        run_id = _trial_id(parent, name)
        made, note = records.made_of(trial)
        if note:
            self.refused.append(note)
        before = _read(self._file(run_id)) or {}
        end = trial["ended_ms"] or made.written_ms or int(before.get("ended_ms") or time_ms)
        start = end - round(1000 * (trial["seconds"] or 0.0))
        epochs = [
            _line(step, at, records.named(dict(record)))
            for step, at, record in records.over_time(made.history, start, end)
        ]
        storage.write(str(self._file(run_id).with_name(METRICS)), "".join(epochs).encode())
        assert self._begun is not None  # else it has no run
        self._update(
            run_id,
            name=name,
            experiment=self._begun["experiment"],
            parent=parent,
            status=STATUS.get(trial["status"], STOPPED),
            started_ms=start,
            ended_ms=end,
            params=dict(records.flat("", trial["values"])),
            metrics={**trial["metrics"], **made.kept},
            tags={key: redact(text) for key, text in trial["tags"].items()},
            artifact={"uri": redact(trial["artifact"] or ""), "digest": made.digest},
            job=json.loads(redact(json.dumps(made.job))),
            dataset=json.loads(redact(json.dumps(self._begun["dataset"]))),
        )
        self.run_ids[name] = run_id

    def _leaderboard(self, event: Event) -> None:
        """The metrics and the files of a whole sweep."""
        run = _read(self._file(self._run())) or {}
        self._update(
            self._run(),
            metrics=run.get("metrics", {}) | event["metrics"],
            tags=run.get("tags", {}) | {k: redact(text) for k, text in event["tags"].items()},
        )
        for name in event["files"]:
            try:
                content = storage.read(storage.join(event["folder"], name))
            except FileNotFoundError:
                raise RegistryError(f"{event['folder']}: {name} is not there") from None
            storage.write(str(self._file(self._run()).with_name("files") / name), content)

    def _end(self, event: Event) -> None:
        self._update(self._run(), status=STATUS[event["status"]], ended_ms=event["time_ms"])

    def _add_epochs(self, epochs: list[tuple[int, int, Mapping[str, float]]]) -> None:
        """Append epochs that are not recorded yet; a line that a kill cut short is removed first."""
        path = self._file(self._run()).with_name(METRICS)
        if self._steps is None:
            text = path.read_bytes() if path.exists() else b""
            whole = text[: text.rfind(b"\n") + 1]
            if whole != text:
                storage.write(str(path), whole)
            self._steps = {json.loads(line)["step"] for line in whole.splitlines()}
        new = {
            step: _line(step, at, record) for step, at, record in epochs if step not in self._steps
        }
        if new:
            self._steps |= new.keys()
            with storage.writing(str(path)):
                storage.make_folder(path.parent)
                with open(path, "ab") as file:
                    file.write("".join(new.values()).encode())
                    file.flush()
                    os.fsync(file.fileno())

    def _run(self) -> str:
        """The id of this run."""
        if self._begun is None:
            raise RegistryError("the outbox does not name its run (no `begin` event)")
        if self.run_id is None:
            self.run_id = _run_id(self._begun)
        return self.run_id

    def _file(self, run_id: str) -> Path:
        return self._tracker.run_folder(run_id) / RUN

    def _update(self, run_id: str, **fields: Any) -> None:
        """Replace fields of a run."""
        before = _read(self._file(run_id)) or {"run_id": run_id}
        _write(self._file(run_id), before | fields)

    _methods: ClassVar[dict[str, Callable[["FilesWriter", Event], None]]] = {
        "begin": _begin,
        "epoch": _epoch,
        "artifact": _artifact,
        "board": _leaderboard,
        "end": _end,
    }


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made, waiting for another holder."""
    with storage.writing(str(folder)):
        storage.make_folder(folder)
    with locked(folder / ".lock"):
        yield


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON of a file; None where there is none. Raises: RegistryError for other content."""
    try:
        found = json.loads(storage.read(str(path)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RegistryError(f"{path}: not JSON ({error}); restore it from a backup") from None
    if not isinstance(found, dict):
        raise RegistryError(f"{path}: not a JSON object; restore it from a backup")
    return found


def _write(path: Path, tree: dict[str, Any]) -> None:
    storage.write(str(path), json.dumps(tree, indent=1, sort_keys=True).encode())


def _line(step: int, time_ms: int, metrics: Mapping[str, float]) -> str:
    """One epoch of a run."""
    numbers = {name: float(value) for name, value in metrics.items()}
    return json.dumps({"step": step, "time_ms": time_ms, "metrics": numbers}) + "\n"


def _run_id(begin: Event) -> str:
    """The id of the run of a job on its rows."""
    digest = str(begin["dataset"].get("digest") or "rows")
    return _hash(begin["experiment"], begin["run"], digest)


def _trial_id(parent: str, trial: str) -> str:
    return _hash(parent, trial)


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
