"""The artifact's folder: replaced in one step, loaded only where everything is as it was."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor

from hourglass import storage
from hourglass.artifact import golden, tensors, untrusted
from hourglass.artifact.manifest import (
    FORMAT,
    GOLDEN,
    MANIFEST,
    WEIGHTS,
    Calibration,
    Ensemble,
    FeatureRecord,
    FileRecord,
    Manifest,
    parse_manifest,
    validated,
)
from hourglass.data.footer import reaching
from hourglass.errors import ArtifactError, DataError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.preprocessing import upgraded

FILES = (MANIFEST, WEIGHTS, GOLDEN)
WAITING = re.compile(rf"({re.escape(WEIGHTS)}|{re.escape(GOLDEN)})\.[0-9a-f]{{16}}")
"""A file that waits for its name, which ends in its own hash: see `save`."""
HALF = re.compile(rf"\.({'|'.join(map(re.escape, FILES))})(\.[0-9a-f]{{16}})?\.[0-9a-f]{{8}}\.tmp")
"""What a killed save left half-written."""
MANIFEST_BYTES = 16 * 2**20
FILE_BYTES = 16 * 2**30
READS = 5
"""How often an artifact is read that is replaced meanwhile."""


@dataclass(frozen=True)
class Artifact:
    """A verified model in memory: `digest` is the SHA-256 of its manifest.

    `module` is the model, or the lead of an ensemble; `others` are its other members.
    """

    manifest: Manifest
    module: AutoencoderModule
    digest: str
    others: tuple[AutoencoderModule, ...] = ()


def save(
    uri: str,
    *,
    module: AutoencoderModule,
    features: FeatureRecord,
    calibration: Calibration,
    golden_rows: Tensor,
    name: str,
    metrics: dict[str, float],
    job: dict[str, Any],
    provenance: dict[str, Any],
    ensemble: Ensemble | None = None,
    others: Sequence[AutoencoderModule] = (),
) -> str:
    """Write the artifact to the folder `uri`, or none of it; returns its digest.

    `others` are the modules of `ensemble.others`. An artifact already there is replaced at once, when
    the manifest is: the other files wait for their names until then, and `load` finds them if
    nobody gave them any. Saves into one folder wait for each other.
    Raises: ArtifactError when a number is not finite, the folder holds what is not an artifact's, or
    another save took its place where none can wait (S3, some network disks); WriteError.
    """
    members = [member.cpu().eval() for member in (module, *others)]
    weights = tensors.of(ensemble, members)
    untrusted.require_finite(uri, weights)
    recorded = golden.outputs(members, golden_rows)
    untrusted.require_finite(uri, recorded, but="rows")
    golden.require_rows(uri, module, recorded)
    content = {WEIGHTS: save_tensors(weights), GOLDEN: save_tensors(recorded)}
    fields = {
        "format": FORMAT,
        "name": name,
        "model": module.spec,
        "unit_data": module.unit_data,
        "features": features,
        "calibration": calibration,
        "metrics": metrics,
        "job": job,
        "provenance": provenance,
        "ensemble": ensemble,
        "files": {
            file: FileRecord(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for file, data in content.items()
        },
    }
    manifest = validated(uri, fields).model_dump(mode="json")
    text = json.dumps(manifest, indent=1, sort_keys=True).encode()
    waiting = {file: _waiting(file, entry["sha256"]) for file, entry in manifest["files"].items()}
    digest = hashlib.sha256(text).hexdigest()
    with _in_turn(uri) as alone:
        _tidy(uri, but=_replaceable(uri))
        for file, name in waiting.items():
            storage.write(storage.join(uri, name), content[file])
        storage.write(storage.join(uri, MANIFEST), text)
        with contextlib.suppress(OSError):  # saved it is; the next save tidies up
            for file, name in waiting.items():
                storage.move(storage.join(uri, name), storage.join(uri, file))
            _tidy(uri)
        if not alone:
            _require_saved(uri, digest)
    return digest


@contextlib.contextmanager
def _in_turn(uri: str) -> Iterator[bool]:
    """Wait for other saves into a folder on a disk; yields whether none can come in between.

    The folder itself is locked: a file for that would not be the artifact's.
    """
    if not storage.is_local(uri):
        yield False
        return
    folder = Path(uri.removeprefix("file://"))
    with storage.writing(uri):
        storage.make_folder(folder)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        except OSError:  # not every network disk has locks
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _require_saved(uri: str, digest: str) -> None:
    """Raise ArtifactError where another save came in between."""
    try:
        read(uri, digest)
    except ArtifactError as error:
        raise ArtifactError(
            f"{uri}: another process saved here at the same time ({error}); save again, or elsewhere"
        ) from None


def _waiting(file: str, sha256: str) -> str:
    """The name under which a file waits for its own."""
    return f"{file}.{sha256[:16]}"


def _replaceable(uri: str) -> list[str]:
    """Files that the artifact in the folder may still have under the names they waited with.

    Raises: ArtifactError when something else is there, which saving would destroy.
    """
    names = storage.names(uri)
    _no_other_files(uri, names)
    if MANIFEST not in names:
        strange = [name for name in names if name in FILES]
        if strange:
            raise ArtifactError(
                f"{uri}: holds '{strange[0]}' without {MANIFEST}, so it is not an artifact's; move it "
                "away, or save elsewhere"
            )
        return []
    path = storage.join(uri, MANIFEST)
    try:
        files = untrusted.parse_json(untrusted.read_file(path, MANIFEST_BYTES))["files"]
        return [_waiting(file, files[file]["sha256"]) for file in (WEIGHTS, GOLDEN)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArtifactError(
            f"{path}: not an artifact's manifest; move it away, or save elsewhere"
        ) from None


def _tidy(uri: str, but: Sequence[str] = ()) -> None:
    """Remove what killed saves left behind."""
    for name in storage.names(uri):
        if HALF.fullmatch(name) or (WAITING.fullmatch(name) and name not in but):
            storage.remove(storage.join(uri, name))


def _locate(uri: str, manifest: Manifest) -> dict[str, str]:
    """Where each file is that the manifest lists: under its name, or, of a save cut short, beside it.

    Raises: ArtifactError for a folder that holds other files.
    """
    names = storage.names(uri)
    _no_other_files(uri, names)
    found = {}
    for file, entry in manifest.files.items():
        waiting = _waiting(file, entry.sha256)
        found[str(file)] = storage.join(uri, waiting if waiting in names else file)
    return found


def require_outside(uri: str, replaces: bool = False) -> None:
    """Raise DataError for a place to write to that lies in an artifact, however deep, or is one.

    An artifact with another file in it no longer loads. One that the writing `replaces` may be there.
    """
    for folder in islice(storage.above(uri), int(replaces), None):
        with reaching(uri):
            inside = _is_artifact(folder)
        if inside:
            raise DataError(
                f"{uri}: lies in the folder of an artifact, which holds no other files and would no "
                "longer load; write elsewhere"
            )


def _is_artifact(folder: str) -> bool:
    """True also for one whose files wait for their names; a manifest alone may be anybody's."""
    path = storage.join(folder, MANIFEST)
    try:
        files = untrusted.parse_json(untrusted.read_file(path, MANIFEST_BYTES))["files"]
        waiting = _waiting(WEIGHTS, files[WEIGHTS]["sha256"])
    except (ArtifactError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return not {WEIGHTS, waiting}.isdisjoint(storage.names(folder))


def load(uri: str, digest: str | None = None) -> Artifact:
    """Read, verify and rebuild the artifact at `uri`; `digest` pins the manifest it must have.

    Each file is read once, and hashed, parsed and used from those same bytes. Checked: sizes,
    hashes, names, shapes, dtypes, finiteness, and that the golden rows give the recorded outputs.
    Raises: ArtifactError naming file and cause.
    """
    return rebuild(uri, read(uri, digest))


def read(uri: str, digest: str | None = None) -> dict[str, bytes]:
    """The files of the artifact at `uri` by name, those that its manifest means, sizes and hashes checked.

    One that is replaced meanwhile is read anew. Raises: ArtifactError.
    """
    path = storage.join(uri, MANIFEST)
    for left in reversed(range(READS)):
        text = untrusted.read_file(path, MANIFEST_BYTES)
        found = hashlib.sha256(text).hexdigest()
        if digest is not None and found != digest:
            raise ArtifactError(
                f"{uri}: manifest digest is {found[:12]}, registered is {digest[:12]}"
            )
        manifest = parse_manifest(path, text)
        paths = _locate(uri, manifest)
        try:
            return {MANIFEST: text} | {
                file: _read_listed(uri, file, manifest, paths) for file in (WEIGHTS, GOLDEN)
            }
        except ArtifactError:
            now = untrusted.read_file(path, MANIFEST_BYTES), _locate(uri, manifest)
            if not left or now == (text, paths):
                raise
    raise AssertionError


def rebuild(uri: str, files: Mapping[str, bytes]) -> Artifact:
    """`load`, of files that were read."""
    text = files[MANIFEST]
    manifest = parse_manifest(storage.join(uri, MANIFEST), text)
    weights, recorded = (
        untrusted.parse_tensors(storage.join(uri, file), files[file]) for file in (WEIGHTS, GOLDEN)
    )
    if manifest.format == 1:
        weights = upgraded(weights, tensors.SHARED)
    members = tensors.build(uri, manifest, weights)
    golden.check(storage.join(uri, GOLDEN), members, recorded)
    return Artifact(manifest, members[0], hashlib.sha256(text).hexdigest(), tuple(members[1:]))


def _no_other_files(uri: str, names: Sequence[str]) -> None:
    ours = [*FILES, *filter(WAITING.fullmatch, names), *filter(HALF.fullmatch, names)]
    extra = [name for name in names if name not in ours]
    if extra:
        raise ArtifactError(
            f"{uri}: unexpected file '{extra[0]}'; an artifact holds {', '.join(sorted(FILES))}"
        )


def _read_listed(uri: str, file: str, manifest: Manifest, paths: Mapping[str, str]) -> bytes:
    record = manifest.files.get(file)  # type: ignore[call-overload]
    if record is None:
        raise ArtifactError(f"{storage.join(uri, file)}: not listed in {MANIFEST}")
    path = paths[file]
    data = untrusted.read_file(path, min(record.bytes, FILE_BYTES))
    if len(data) != record.bytes:
        raise ArtifactError(f"{path}: {len(data)} bytes, the manifest says {record.bytes}")
    found = hashlib.sha256(data).hexdigest()
    if found != record.sha256:
        raise ArtifactError(
            f"{path}: SHA-256 is {found[:12]}, the manifest says {record.sha256[:12]}; the file was changed"
        )
    return data
