"""The folder of an artifact: replaced in one step, and loaded only if every byte verifies."""

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
from hourglass.artifact import reference, tensors, untrusted
from hourglass.artifact.manifest import (
    FORMAT,
    MANIFEST,
    OLD_REFERENCE,
    REFERENCE,
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

FILES = (MANIFEST, WEIGHTS, REFERENCE)
KNOWN = (*FILES, OLD_REFERENCE)
WAITING = re.compile(rf"({'|'.join(map(re.escape, KNOWN[1:]))})\.[0-9a-f]{{16}}")
"""A complete file under its temporary name, which ends in its own hash: see `save`."""
HALF = re.compile(rf"\.({'|'.join(map(re.escape, KNOWN))})(\.[0-9a-f]{{16}})?\.[0-9a-f]{{8}}\.tmp")
"""An incomplete file of a killed save."""
MANIFEST_BYTES = 16 * 2**20
FILE_BYTES = 16 * 2**30
READS = 5
"""Attempts to read an artifact that is being replaced."""


@dataclass(frozen=True)
class Artifact:
    """A verified model in memory: `digest` is the SHA-256 of its manifest.

    `module` is the model, or the primary member of an ensemble; `others` are its other members.
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
    reference_rows: Tensor,
    name: str,
    metrics: dict[str, float],
    job: dict[str, Any],
    provenance: dict[str, Any],
    ensemble: Ensemble | None = None,
    others: Sequence[AutoencoderModule] = (),
) -> str:
    """Write the artifact to the folder `uri`, or none of it; returns its digest.

    `others` are the modules of `ensemble.others`. An artifact that is already there is replaced in one
    step, when the manifest is: until then the other files have temporary names, under which `load`
    finds them as well. Concurrent saves into one folder wait for each other.
    Raises: ArtifactError when a number is not finite, the folder holds other files, or another save
    replaced this one where there are no locks (S3, some network disks); WriteError.
    """
    members = [member.cpu().eval() for member in (module, *others)]
    weights = tensors.of(ensemble, members)
    untrusted.require_finite(uri, weights)
    recorded = reference.outputs(members, reference_rows)
    untrusted.require_finite(uri, recorded, but="rows")
    reference.require_rows(uri, module, recorded)
    content = {WEIGHTS: save_tensors(weights), REFERENCE: save_tensors(recorded)}
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
        with contextlib.suppress(OSError):  # the artifact is saved; the next save cleans up
            for file, name in waiting.items():
                storage.move(storage.join(uri, name), storage.join(uri, file))
            _tidy(uri)
            storage.remove(storage.join(uri, OLD_REFERENCE))
        if not alone:
            _require_saved(uri, digest)
    return digest


@contextlib.contextmanager
def _in_turn(uri: str) -> Iterator[bool]:
    """Wait for other saves into a local folder; yields whether none can come in between.

    The lock is on the folder itself, because a lock file in it would not belong to the artifact.
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
        except OSError:  # some network disks have no locks
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _require_saved(uri: str, digest: str) -> None:
    """Raise ArtifactError when another save replaced this one."""
    try:
        read(uri, digest)
    except ArtifactError as error:
        raise ArtifactError(
            f"{uri}: another process saved here at the same time ({error}); save again, or elsewhere"
        ) from None


def _waiting(file: str, sha256: str) -> str:
    """The temporary name of a file."""
    return f"{file}.{sha256[:16]}"


def _replaceable(uri: str) -> list[str]:
    """Files of the artifact in the folder that may still have their temporary names.

    Raises: ArtifactError when the folder holds something else, which saving would destroy.
    """
    names = storage.names(uri)
    _no_other_files(uri, names)
    if MANIFEST not in names:
        strange = [name for name in names if name in KNOWN]
        if strange:
            raise ArtifactError(
                f"{uri}: holds '{strange[0]}' without {MANIFEST}, so it is not an artifact; move it "
                "away, or save elsewhere"
            )
        return []
    path = storage.join(uri, MANIFEST)
    try:
        files = untrusted.parse_json(untrusted.read_file(path, MANIFEST_BYTES))["files"]
        recorded = OLD_REFERENCE if OLD_REFERENCE in files else REFERENCE
        return [_waiting(file, files[file]["sha256"]) for file in (WEIGHTS, recorded)]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArtifactError(
            f"{path}: not the manifest of an artifact; move it away, or save elsewhere"
        ) from None


def _tidy(uri: str, but: Sequence[str] = ()) -> None:
    """Remove the files of killed saves."""
    for name in storage.names(uri):
        if HALF.fullmatch(name) or (WAITING.fullmatch(name) and name not in but):
            storage.remove(storage.join(uri, name))


def _locate(uri: str, manifest: Manifest) -> dict[str, str]:
    """The path of each file that the manifest lists; after an interrupted save, a temporary name.

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
    """Raise DataError for an output path that is an artifact or lies in one, at any depth.

    An artifact with other files in it no longer loads. With `replaces`, `uri` itself may be one.
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
    """True also while its files have temporary names; a manifest alone is not enough."""
    path = storage.join(folder, MANIFEST)
    try:
        files = untrusted.parse_json(untrusted.read_file(path, MANIFEST_BYTES))["files"]
        waiting = _waiting(WEIGHTS, files[WEIGHTS]["sha256"])
    except (ArtifactError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return not {WEIGHTS, waiting}.isdisjoint(storage.names(folder))


def load(uri: str, digest: str | None = None) -> Artifact:
    """Read, verify and rebuild the artifact at `uri`; `digest` pins its manifest.

    Each file is read once, and hashed, parsed and used from those same bytes. Checked: sizes,
    hashes, names, shapes, dtypes, finiteness, and that the model reproduces the reference outputs.
    Raises: ArtifactError naming file and cause.
    """
    return rebuild(uri, read(uri, digest))


def read(uri: str, digest: str | None = None) -> dict[str, bytes]:
    """The files of the artifact at `uri` by name, their sizes and hashes verified.

    If the artifact is replaced meanwhile, it is read again. Raises: ArtifactError.
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
                file: _read_listed(uri, file, manifest, paths)
                for file in (WEIGHTS, manifest.reference)
            }
        except ArtifactError:
            now = untrusted.read_file(path, MANIFEST_BYTES), _locate(uri, manifest)
            if not left or now == (text, paths):
                raise
    raise AssertionError


def rebuild(uri: str, files: Mapping[str, bytes]) -> Artifact:
    """The artifact of the `files` that `read` returned. Raises: ArtifactError."""
    text = files[MANIFEST]
    manifest = parse_manifest(storage.join(uri, MANIFEST), text)
    weights, recorded = (
        untrusted.parse_tensors(storage.join(uri, file), files[file])
        for file in (WEIGHTS, manifest.reference)
    )
    if manifest.format == 1:
        weights = upgraded(weights, tensors.SHARED)
    members = tensors.build(uri, manifest, weights)
    reference.check(storage.join(uri, manifest.reference), members, recorded)
    return Artifact(manifest, members[0], hashlib.sha256(text).hexdigest(), tuple(members[1:]))


def _no_other_files(uri: str, names: Sequence[str]) -> None:
    ours = [*KNOWN, *filter(WAITING.fullmatch, names), *filter(HALF.fullmatch, names)]
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
