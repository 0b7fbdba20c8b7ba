"""The manifest of a dataset: which shards, how big, rows of each row group, which schema."""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from hourglass import storage
from hourglass.data.footer import reaching, read_footer
from hourglass.data.schema import kind_name, schema_hash
from hourglass.errors import DataError
from hourglass.strict import Strict


class Shard(Strict):
    """One Parquet file: `name` is its path below the dataset's folder."""

    name: str
    path: str
    size: int
    digest: str = Field(
        description="sha256:…, etag:…, or footer-sha256:… where content was not read."
    )
    rows: tuple[int, ...] = Field(description="Rows of each row group.")
    checksums: bool = Field(False, description="Its pages carry checksums, verified when read.")


class Manifest(Strict):
    """The shards of a dataset, sorted by name, all of one schema."""

    format: Literal[1] = 1
    schema_hash: str
    columns: tuple[tuple[str, str], ...]
    shards: tuple[Shard, ...]

    @cached_property
    def rows(self) -> int:
        """All rows."""
        return sum(sum(shard.rows) for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, sizes, rows and footers or content: the identity of the data."""
        lines = [[shard.name, shard.size, shard.digest, shard.rows] for shard in self.shards]
        return hashlib.sha256(json.dumps([self.schema_hash, lines]).encode()).hexdigest()


def list_shards(uri: str | Sequence[str]) -> list[str]:
    """Sorted paths of the Parquet files under folders, globs, files or S3 URIs.

    Names that begin with `_` or `.` are skipped, as every Parquet reader does. Raises DataError.
    """
    uris = [uri] if isinstance(uri, str) else list(uri)
    paths: list[str] = []
    for item in uris:
        found = _expand(item)
        if not found:
            raise DataError(f"{item}: no Parquet files there (names ending in .parquet)")
        paths += found
    return sorted(dict.fromkeys(paths))


def _expand(uri: str) -> list[str]:
    fs, path = storage.filesystem(uri)
    prefix = "" if storage.is_local(uri) else uri.split("://", 1)[0] + "://"
    with reaching(uri):
        fs.invalidate_cache()
        try:
            found = fs.find(path) if fs.info(path)["type"] == "directory" else [path]
        except FileNotFoundError:
            if not any(mark in path for mark in "*?["):
                raise
            matches = fs.glob(path, detail=True)
            found = [e for e, info in matches.items() if info["type"] == "file"]
            return [prefix + e for e in found if not e.rsplit("/", 1)[-1].startswith(("_", "."))]
    if found == [path]:
        return [prefix + path]
    return [prefix + e for e in found if e.endswith(".parquet") and not _hidden(e, path)]


def _hidden(entry: str, folder: str) -> bool:
    return any(part.startswith(("_", ".")) for part in entry[len(folder) :].split("/"))


def scan(uri: str | Sequence[str], content: bool = False) -> tuple[Manifest, pa.Schema]:
    """Read every footer and build the manifest; with `content`, hash every byte as well.

    Raises DataError for a shard that is damaged or of another schema than the first.
    """
    paths = list_shards(uri)
    with ThreadPoolExecutor(max_workers=8) as pool:
        footers = list(pool.map(read_footer, paths))
        digests = list(pool.map(content_digest if content else _no_digest, paths))
    schema = footers[0].schema
    for path, footer in zip(paths, footers, strict=True):
        _same_schema(paths[0], schema, path, footer.schema)
    shards = tuple(
        Shard(
            name=name,
            path=path,
            size=footer.size,
            digest=digest or footer.digest,
            rows=footer.rows,
            checksums=footer.checksums,
        )
        for name, path, footer, digest in zip(_names(paths), paths, footers, digests, strict=True)
    )
    columns = tuple((field.name, str(field.type)) for field in schema)
    return Manifest(schema_hash=schema_hash(schema), columns=columns, shards=shards), schema


def _names(paths: Sequence[str]) -> list[str]:
    """Paths below the deepest folder they share: the same for a dataset and for a copy of it."""
    parts = [path.split("/") for path in paths]
    levels = zip(*(steps[:-1] for steps in parts), strict=False)
    depth = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))
    return ["/".join(steps[depth:]) for steps in parts]


def content_digest(path: str, kind: str = "") -> str:
    """`etag:…` of an S3 object, `sha256:…` of a local file's bytes, or the `kind` asked for."""
    fs, inner = storage.filesystem(path)
    with reaching(path):
        if not storage.is_local(path) and kind != "sha256":
            return f"etag:{fs.info(inner)['ETag'].strip(chr(34))}"
        digest = hashlib.sha256()
        with fs.open(inner, "rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
        return f"sha256:{digest.hexdigest()}"


def _no_digest(path: str) -> str:
    return ""


def _same_schema(first: str, expected: pa.Schema, path: str, found: pa.Schema) -> None:
    """Raise DataError for repeated names, and for names, types or an order unlike the first's."""
    name, count = Counter(found.names).most_common(1)[0] if found.names else ("", 0)
    if count > 1:
        raise DataError(f"{path}: column '{name}' occurs {count} times; names must be unique")
    if schema_hash(expected) == schema_hash(found):
        return
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            raise DataError(f"{path}: no column '{field.name}', which {first} has")
        if kind_name(found.field(index).type) != kind_name(field.type):
            raise DataError(
                f"{path}: column '{field.name}' is {kind_name(found.field(index).type)}, "
                f"in {first} it is {kind_name(field.type)}; all shards must have one schema"
            )
    extra = [name for name in found.names if name not in expected.names]
    if extra:
        raise DataError(
            f"{path}: column '{extra[0]}' is not in {first}; all shards must have one schema"
        )
    moved = next(
        name for name, want in zip(found.names, expected.names, strict=True) if name != want
    )
    raise DataError(f"{path}: column '{moved}' is at another position than in {first}")


def load_manifest(uri: str) -> Manifest:
    """The manifest stored at `uri`. Raises DataError."""
    try:
        with reaching(uri):
            return Manifest.model_validate(json.loads(storage.read(uri)))
    except (ValueError, RecursionError):
        raise DataError(
            f"{uri}: not a manifest; write one with `hourglass data manifest`"
        ) from None


def require_replaceable(uri: str) -> None:
    """Raise DataError when `uri` exists and is not the manifest of a dataset."""
    with reaching(uri):
        if not storage.exists(uri):
            return
    try:
        load_manifest(uri)
    except DataError:
        raise DataError(
            f"{uri}: exists, and is not the manifest of a dataset; move it away, or write elsewhere "
            "(--out FILE)"
        ) from None


def save_manifest(uri: str, manifest: Manifest) -> None:
    """Write the manifest atomically, as JSON; replaces only another manifest. Raises DataError."""
    require_replaceable(uri)
    storage.write(uri, json.dumps(manifest.model_dump(mode="json"), indent=1).encode())


def require_pinned(pinned_at: str, pinned: Manifest, found: Manifest) -> None:
    """Raise DataError naming every shard in which the data differs from the pinned manifest."""
    expected = {shard.name: shard for shard in pinned.shards}
    problems = []
    for shard in found.shards:
        want = expected.pop(shard.name, None)
        if want is None:
            problems.append(f"{shard.path}: not in the manifest")
        elif (want.size, want.rows) != (shard.size, shard.rows):
            problems.append(
                f"{shard.path}: {shard.size} bytes, {sum(shard.rows)} rows; "
                f"the manifest says {want.size} bytes, {sum(want.rows)} rows"
            )
        elif want.digest != _digest_like(want, shard):
            problems.append(f"{shard.path}: content differs from the manifest")
    problems += [f"{name}: in the manifest, but missing" for name in expected]
    if problems:
        raise DataError(
            f"the data differs from the manifest {pinned_at}:\n  " + "\n  ".join(problems)
        )


def _digest_like(want: Shard, shard: Shard) -> str:
    """The shard's digest of the same kind as the pinned one. Raises DataError."""
    kind = want.digest.split(":", 1)[0]
    if kind == "etag" and storage.is_local(shard.path):
        raise DataError(
            f"{shard.path}: pinned by the ETag of an S3 object; pin local files with a manifest of "
            "their own"
        )
    return shard.digest if shard.digest.startswith(f"{kind}:") else content_digest(shard.path, kind)


def unchecked(manifest: Manifest) -> str | None:
    """A warning about shards whose pages carry no checksums, or None when all do."""
    bare = [shard for shard in manifest.shards if sum(shard.rows) and not shard.checksums]
    if not bare:
        return None
    return (
        f"{len(bare)} of {len(manifest.shards)} shards carry no page checksums ({bare[0].path} is "
        "one): damage to them may change numbers unnoticed. Write them with "
        "write_page_checksum=True, or pin their content with `hourglass data manifest`"
    )


def locate(uri: str | Sequence[str]) -> dict[str, Any]:
    """The location of a dataset for the tracker: a short `name`, and the `uri` as given.

    The name is the last part of the path without wildcards; the names of several URIs are joined.
    """
    uris = [uri] if isinstance(uri, str) else list(uri)
    names = dict.fromkeys(_last_part(item) for item in uris)
    return {"name": ", ".join(names), "uri": uri if isinstance(uri, str) else uris}


def _last_part(uri: str) -> str:
    if storage.is_local(uri):
        uri = os.path.abspath(uri.removeprefix("file://"))
    bucket, _, key = uri.rpartition("://")[2].partition("/")
    parts = [bucket.rpartition("@")[2], *key.split("/")]  # without user and password
    plain = [part for part in parts if part and not any(mark in part for mark in "*?[")]
    return plain[-1] if plain else "/"


def describe(manifest: Manifest) -> dict[str, Any]:
    """The content of a dataset for the tracker."""
    return {
        "digest": manifest.digest,
        "schema_hash": manifest.schema_hash,
        "shards": len(manifest.shards),
        "rows": manifest.rows,
    }
