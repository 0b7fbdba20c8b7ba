"""The artifact: what is saved is what loads, and nothing else does (REG-01, REG-03, REG-05)."""

import errno
import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from hourglass import artifact, storage
from hourglass.artifact import MANIFEST, REFERENCE, WEIGHTS, untrusted
from hourglass.artifact import folder as saving
from hourglass.artifact.manifest import OLD_REFERENCE, parse_manifest
from hourglass.errors import ArtifactError
from hourglass.inference.predictor import Predictor

Tree = dict[str, Any]
Save = Callable[..., str]


class Bomb:
    """Unpickled, it creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


def manifest_of(folder: Path) -> Tree:
    return json.loads((folder / MANIFEST).read_bytes())


def seal(folder: Path, **changes: Any) -> None:
    """Make the manifest agree with the files again, as an attacker with a pen would."""
    tree = manifest_of(folder) | changes
    for file in tree["files"]:
        data = (folder / file).read_bytes()
        tree["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(tree))


def swap(folder: Path, file: str, data: bytes) -> None:
    (folder / file).write_bytes(data)
    seal(folder)


def tensors(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    held = load_tensors((folder / file).read_bytes())
    change(held)
    swap(folder, file, save_tensors({name: value.contiguous() for name, value in held.items()}))


def nested(tree: Tree, path: str, value: Any) -> Tree:
    *steps, last = path.split("/")
    below = tree
    for step in steps:
        below = below[step]
    below[last] = value
    return tree


def claim(path: str, value: Any) -> Callable[[Path], None]:
    """The manifest says `value` at `path`, its steps parted by `/`."""
    return lambda folder: (folder / MANIFEST).write_text(
        json.dumps(nested(manifest_of(folder), path, value))
    )


def rename(name: str) -> Callable[[Path], None]:
    """The manifest lists its weights under another name."""

    def change(folder: Path) -> None:
        tree = manifest_of(folder)
        tree["files"][name] = tree["files"].pop(WEIGHTS)
        (folder / MANIFEST).write_text(json.dumps(tree))

    return change


def reword(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / MANIFEST).read_text()
        assert old in text
        (folder / MANIFEST).write_text(text.replace(old, new, 1))

    return change


def headed(header: Any, body: bytes = b"") -> Callable[[Path], None]:
    """The weights are a safetensors file with this header (text, or what becomes JSON)."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return lambda folder: swap(folder, WEIGHTS, struct.pack("<Q", len(text)) + text + body)


def entry(dtype: str, shape: list[int], start: int, end: int) -> Tree:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def relabel(old: str, new: str) -> Callable[[Path], None]:
    """One dtype of the weights' header becomes another of the same size."""

    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        assert old.encode() in data
        swap(folder, WEIGHTS, data.replace(old.encode(), new.encode(), 1))

    return change


def set_weight(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return lambda folder: tensors(folder, WEIGHTS, lambda t: t.update({name: change(t[name])}))


def set_reference(
    name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Path], None]:
    return lambda folder: tensors(folder, REFERENCE, lambda t: t.update({name: change(t[name])}))


def first_cell(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor

    return change


def replaced(file: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """`file` gives way to what `make` puts at its path."""

    def change(folder: Path) -> None:
        (folder / file).rename(folder.parent / "aside")
        make(folder / file)

    return change


def bomb(folder: Path) -> bytes:
    return pickle.dumps(Bomb(folder.parent / "marker"))


def trap(folder: Path) -> str:
    return f"open({str(folder.parent / 'marker')!r}, 'w')\n"


def archive(path: Path, folder: Path, name: str) -> Path:
    """A zip archive, as torch writes .pt2 and .pt, with a pickle called `name`."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, bomb(folder))
    return path


def tar(path: Path, folder: Path) -> None:
    (folder.parent / "pickle").write_bytes(bomb(folder))
    with tarfile.open(path, "w") as file:
        file.add(folder.parent / "pickle", "../pickle")


def listening(path: Path) -> None:
    """A Unix socket; bound by a relative name, as such names must be short."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


KEPT = "preprocessing.kept_F"
FIRST = "network.encoder.0.weight"
PICKLES = (
    "model.pkl", "model.pickle", "data.pkl", "python_model.pkl", "model.pt", "model.pth",
    "model.pt2", "pytorch_model.bin", "model.joblib", "model.ckpt", "pickle_module_info.txt",
    "model.dill",
)  # fmt: skip

# What is done to a good artifact, and words of the message that refuses it.
HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{
        f"pickle {name}": (
            lambda folder, name=name: (folder / name).write_bytes(bomb(folder)),
            f"unexpected file '{name}'; an artifact holds manifest.json, model.safetensors, ",
        )
        for name in PICKLES
    },
    "pickled weights": (lambda f: swap(f, WEIGHTS, bomb(f)), "not a safetensors file (header"),
    "pickled reference rows": (
        lambda f: swap(f, REFERENCE, bomb(f)),
        "not a safetensors file (header",
    ),
    "pickled manifest": (lambda f: (f / MANIFEST).write_bytes(bomb(f)), "manifest.json: not JSON"),
    "MLmodel with a loader": (
        lambda f: (f / "MLmodel").write_text("flavors: {python_function: {loader_module: evil}}"),
        "unexpected file 'MLmodel'",
    ),
    "MLmodel with code": (
        lambda f: ((f / "code").mkdir(), (f / "code" / "evil.py").write_text(trap(f))),
        "unexpected file 'code'",
    ),
    "a package": (lambda f: (f / "__init__.py").write_text(trap(f)), "file '__init__.py'"),
    "sitecustomize": (
        lambda f: (f / "sitecustomize.py").write_text(trap(f)),
        "unexpected file 'sitecustomize.py'",
    ),
    "legacy tar": (lambda f: tar(f / "model.tar", f), "unexpected file 'model.tar'"),
    "zip slip": (lambda f: archive(f / "a.zip", f, "../a"), "unexpected file 'a.zip'"),
    ".pt2 as weights": (
        lambda f: swap(f, WEIGHTS, archive(f.parent / "z", f, "a/data.pkl").read_bytes()),
        "not a safetensors file (header length)",
    ),
    "hidden file": (lambda f: (f / ".hidden").touch(), "unexpected file '.hidden'"),
    "link to weights": (
        replaced(WEIGHTS, lambda p: p.symlink_to(p.parent.parent / "aside")),
        "model.safetensors: is a symbolic link; an artifact holds regular files only",
    ),
    "link to a manifest": (
        replaced(MANIFEST, lambda p: p.symlink_to(p.parent.parent / "aside")),
        "manifest.json: is a symbolic link",
    ),
    "link to nowhere": (
        replaced(REFERENCE, lambda p: p.symlink_to("nowhere")),
        "reference.safetensors: is a symbolic link",
    ),
    "link to a device": (
        replaced(WEIGHTS, lambda p: p.symlink_to("/dev/zero")),
        "model.safetensors: is a symbolic link",
    ),
    "hard link": (
        replaced(WEIGHTS, lambda p: os.link(p.parent.parent / "aside", p)),
        "model.safetensors: has a second name (hard link)",
    ),
    "pipe as weights": (replaced(WEIGHTS, os.mkfifo), "model.safetensors: is not a regular file"),
    "pipe as manifest": (replaced(MANIFEST, os.mkfifo), "manifest.json: is not a regular file"),
    "socket": (replaced(REFERENCE, listening), "reference.safetensors: is not a regular file"),
    "folder": (replaced(WEIGHTS, Path.mkdir), "model.safetensors: is not a regular file"),
    "no weights": (replaced(WEIGHTS, lambda p: None), "model.safetensors: missing; this is not a"),
    "parent folder": (rename(f"../{WEIGHTS}"), "manifest.json: files.../model.safetensors"),
    "absolute path": (rename("/etc/passwd"), "manifest.json: files./etc/passwd"),
    "encoded path": (rename("%2e%2e/a"), "manifest.json: files.%2e%2e/a"),
    "twice encoded path": (rename("%252e%252e/a"), "manifest.json: files.%252e%252e/a"),
    "path with a null": (rename(f"{WEIGHTS}\x00.txt"), "manifest.json: files.model.safetensors"),
    "unlisted weights": (claim("files", {}), "model.safetensors: not listed in manifest.json"),
    "header beyond the file": (
        lambda f: swap(f, WEIGHTS, struct.pack("<Q", 2**20) + b"{}"),
        "model.safetensors: not a safetensors file (header length)",
    ),
    "header of 2^64 bytes": (
        lambda f: swap(f, WEIGHTS, b"\xff" * 8 + b"{}"),
        "model.safetensors: not a safetensors file (header length)",
    ),
    "file of 3 bytes": (lambda f: swap(f, WEIGHTS, b"\0\0\0"), "a safetensors file (header length"),
    "100,000 header entries": (
        headed({f"t{i}": entry("F32", [0], 0, 0) for i in range(100_000)}),
        "model.safetensors: not a safetensors file (header length)",
    ),
    "10,000 header entries": (
        headed({f"t{i}": entry("F32", [0], 0, 0) for i in range(10_000)}),
        "model.safetensors: 10000 tensors, allowed are 4096",
    ),
    "overlapping offsets": (
        headed({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, b"\0" * 12),
        "not a safetensors file (SafetensorError)",
    ),
    "hole between offsets": (
        headed({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 4, 6)}, b"\0" * 6),
        "not a safetensors file (SafetensorError)",
    ),
    "shape overflow": (
        headed({"a": entry("U8", [2**32, 2**32 + 1], 0, 1)}, b"\0"),
        "not a safetensors file (SafetensorError)",
    ),
    "size no integer holds": (
        headed({"a": entry("U8", [0, 2**64 - 1], 0, 0)}),
        "not a safetensors file (TypeError)",
    ),
    "tensor twice": (
        headed('{"a": %s, "a": %s}' % ((json.dumps(entry("U8", [1], 0, 1)),) * 2), b"\0"),
        "not a safetensors file (ValueError)",
    ),
    "deep header": (headed("[" * 100_000), "not a safetensors file (RecursionError)"),
    "header is a list": (headed([]), "not a safetensors file (AttributeError)"),
    "exotic type": (headed({"a": entry("F8_E4M3", [1], 0, 1)}, b"\0"), "tensors of type F8_E4M3"),
    "NaN": (set_weight(FIRST, first_cell(float("nan"))), f"'{FIRST}' holds NaN or infinity"),
    "infinity": (set_weight(FIRST, first_cell(float("inf"))), f"'{FIRST}' holds NaN or infinity"),
    "NaN buffer": (
        set_weight("preprocessing.scale_F", first_cell(float("nan"))),
        "'preprocessing.scale_F' holds NaN or infinity",
    ),
    "same bytes, other type": (relabel('"F32"', '"I32"'), "is torch.int32 "),
    "wider type": (
        set_weight(FIRST, torch.Tensor.double),
        f"'{FIRST}' is torch.float64 (7, 12), the spec implies torch.float32 (7, 12)",
    ),
    "other shape": (
        set_weight(FIRST, lambda t: t.T),
        f"'{FIRST}' is torch.float32 (12, 7), the spec implies torch.float32 (7, 12)",
    ),
    "tensor too many": (
        lambda f: tensors(f, WEIGHTS, lambda t: t.update(evil=torch.zeros(1))),
        "model.safetensors: tensor 'evil' does not fit the spec",
    ),
    "tensor too few": (
        lambda f: tensors(f, WEIGHTS, lambda t: t.pop(FIRST)),
        f"model.safetensors: tensor '{FIRST}' does not fit the spec",
    ),
    "column that is not there": (set_weight(KEPT, first_cell(-1)), f"'{KEPT}' does not select"),
    "column beyond the row": (set_weight(KEPT, lambda t: t + 1), f"'{KEPT}' does not select"),
    "column twice": (set_weight(KEPT, first_cell(1)), f"'{KEPT}' does not select"),
    "another weight": (
        set_weight(FIRST, first_cell(0.7)),
        "reference code is not reproduced (off by",
    ),
    "another scale": (
        set_weight("preprocessing.shift_F", first_cell(-1.0)),
        "reference code is not reproduced (off by",
    ),
    "another reference output": (
        set_reference("output", first_cell(0.1)),
        "reference output is not reproduced (off by",
    ),
    "reference output too large": (
        set_reference("output", first_cell(1e38)),
        "reference output is not reproduced",
    ),
    "no reference rows": (
        set_reference("rows", lambda t: t[:0]),
        "reference rows of shape (0, 12), expected 1 to 1024 of width 12",
    ),
    "too many reference rows": (
        set_reference("rows", lambda t: t.repeat(200, 1)),
        "reference rows of shape (1600, 12), expected 1 to 1024",
    ),
    "narrow reference rows": (
        set_reference("rows", lambda t: t[:, 1:]),
        "reference rows of shape (8, 11)",
    ),
    "reference code of another type": (
        set_reference("code", torch.Tensor.double),
        "'code' is torch.float64 (8, 5), the spec implies torch.float32 (8, 5)",
    ),
    "reference output missing": (
        lambda f: tensors(f, REFERENCE, lambda t: t.pop("output")),
        "reference.safetensors: holds code, rows, not code, output, rows",
    ),
    "empty manifest": (lambda f: (f / MANIFEST).write_bytes(b""), "manifest.json: not JSON"),
    "manifest is a list": (
        lambda f: (f / MANIFEST).write_bytes(b"[]"),
        "format None, this version",
    ),
    "manifest not UTF-8": (
        lambda f: (f / MANIFEST).write_bytes(b'{"a": "\xff"}'),
        "manifest.json: not JSON",
    ),
    "deep manifest": (
        lambda f: (f / MANIFEST).write_bytes(b"[" * 2**20),
        "manifest.json: not JSON",
    ),
    "20 MB manifest": (
        lambda f: (f / MANIFEST).write_bytes(b" " * 20_000_000),
        "manifest.json: 20000000 bytes, allowed are 16777216",
    ),
    "key twice": (reword("{", '{"format": 3, '), "manifest.json: not JSON (a key occurs twice)"),
    "NaN in the manifest": (reword("0.99,", "NaN,"), "manifest.json: not JSON (NaN is not JSON)"),
    "infinite threshold": (reword('"threshold": 0.5', '"threshold": 1e999'), "finite number"),
    "next format": (
        claim("format", 4),
        "manifest.json: format 4, this version reads formats 1, 2 and 3",
    ),
    "loader in the manifest": (claim("loader_module", "evil"), "loader_module: extra inputs are"),
    "unknown part": (claim("model/loss", {"kind": "evil"}), "manifest.json: model.loss: "),
    "parts that do not fit": (
        claim("model/code", {"kind": "gaussian_noise", "sd": 1.0, "x": 1}),
        "manifest.json: model.code.gaussian_noise.x: extra inputs are not permitted",
    ),
    "negative size": (claim(f"files/{WEIGHTS}", {"bytes": -1, "sha256": "0" * 64}), "bytes: "),
    "empty hash": (claim(f"files/{WEIGHTS}", {"bytes": 1, "sha256": ""}), "sha256: "),
    "other size": (
        claim(f"files/{WEIGHTS}", {"bytes": 2**40, "sha256": "0" * 64}),
        "bytes, the manifest says 1099511627776",
    ),
    "smaller size": (
        claim(f"files/{WEIGHTS}", {"bytes": 10, "sha256": "0" * 64}),
        "bytes, allowed are 10",
    ),
    "huge layer": (
        claim("model/network/widths", [2**30, 5]),
        "'network.decoder.0.bias' is torch.float32 (7,), the spec implies torch.float32 (1073741",
    ),
    "layer no integer holds": (
        claim("model/network/widths", [2**62, 5]),
        "widths.0: input should",
    ),
    "100,000 layers": (
        claim("model/network/widths", [5] * 100_000),
        "manifest.json: model.network.dense.widths: tuple should have at most 64 items",
    ),
    "huge row": (
        lambda f: (claim("features/width", 2**30)(f), claim("features/kept", 2**30)(f)),
        "'network.decoder.1.bias' is torch.float32 (12,), the spec implies torch.float32 (1073741",
    ),
    "more kept than there are": (claim("features/kept", 13), "features: kept is 13, width is 12"),
    "names for half a row": (
        lambda f: (claim("features/vector", None)(f), claim("features/columns", ["a"])(f)),
        "features: 1 columns do not make a row of width 12",
    ),
    "hash bits for another code": (
        claim("calibration/hash_threshold", [0.0] * 6),
        "manifest.json: 6 hash thresholds for a code of 5 units",
    ),
}


MEMBERS = {"members": 3, "primary": 2, "combine": "max"}
FIRST_OF_3 = f"members.3.{FIRST}"


def exchange(one: str, other: str) -> Callable[[Path], None]:
    """Two members change places: all tensors whose names begin so."""

    def change(held: dict[str, torch.Tensor]) -> None:
        names = [name for name in held if name.startswith(one + "network.")]
        for name in names:
            there = other + name.removeprefix(one)
            held[name], held[there] = held[there], held[name]

    return lambda folder: tensors(folder, WEIGHTS, change)


# What is done to a good artifact of three members.
HOSTILE_ENSEMBLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "members exchanged": (
        exchange("members.1.", "members.3."),
        "reference.safetensors: reference output_of_members is not reproduced (off by",
    ),
    "another primary member": (
        exchange("", "members.1."),
        "reference code is not reproduced (off by",
    ),
    "another weight": (
        set_weight(FIRST_OF_3, first_cell(0.7)),
        "reference output_of_members is not reproduced (off by",
    ),
    "NaN": (set_weight(FIRST_OF_3, first_cell(float("nan"))), f"'{FIRST_OF_3}' holds NaN"),
    "other shape": (
        set_weight(FIRST_OF_3, lambda t: t.T),
        f"'{FIRST_OF_3}' is torch.float32 (12, 7), the spec implies torch.float32 (7, 12)",
    ),
    "a member less than there are": (
        claim("ensemble/members", 2),
        "tensor 'members.3.network.decoder.0.bias' does not fit the spec",
    ),
    "a member more than there are": (
        claim("ensemble/members", 4),
        "tensor 'members.4.network.decoder.0.bias' does not fit the spec",
    ),
    "members without an ensemble": (
        claim("ensemble", None),
        "tensor 'members.1.network.decoder.0.bias' does not fit the spec",
    ),
    "no such primary member": (claim("ensemble/primary", 4), "primary is member 4, there are 3"),
    "no primary member": (
        claim("ensemble/primary", 0),
        "ensemble.primary: input should be greater than 0",
    ),
    "an ensemble of one": (
        claim("ensemble/members", 1),
        "ensemble.members: input should be greater",
    ),
    "a billion members": (
        claim("ensemble/members", 10**9),
        "ensemble.members: input should be less",
    ),
    "another rule": (claim("ensemble/combine", "min"), "ensemble.combine: input should be 'mean'"),
    "a member's preprocessing": (
        lambda f: tensors(
            f, WEIGHTS, lambda t: t.update({"members.1.preprocessing.shift_F": torch.zeros(12)})
        ),
        "tensor 'members.1.preprocessing.shift_F' does not fit the spec",
    ),
    "no reference outputs of members": (
        lambda f: tensors(f, REFERENCE, lambda t: t.pop("output_of_members")),
        "reference.safetensors: holds code, output, rows, not code, output, output_of_members, rows",
    ),
    "reference outputs of one member": (
        set_reference("output_of_members", lambda t: t[:1]),
        "reference.safetensors: tensor 'output_of_members' is torch.float32 (1, 8, 12), the spec "
        "implies torch.float32 (2, 8, 12)",
    ),
}


class TooLongError(Exception):
    """A load hangs or computes for more than 2 s."""


@contextmanager
def fenced(megabytes: int = 256, cpu_s: float = 2.0, wall_s: float = 10.0) -> Iterator[None]:
    """At most this much more memory, CPU time and (for a hang) wall time."""

    def stop(*_: Any) -> None:
        raise TooLongError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    resource.setrlimit(
        resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, hard)
    )
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, wall_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def refusal(folder: Path | str, digest: str | None = None) -> str:
    with fenced(), pytest.raises(ArtifactError) as caught:
        artifact.load(str(folder), digest)
    return str(caught.value)


@pytest.mark.parametrize(("attack", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_artifact_is_refused(
    tiny_artifact: Path, attack: Callable[[Path], Any], message: str
) -> None:
    attack(tiny_artifact)
    found = refusal(tiny_artifact)
    assert message in found
    assert str(tiny_artifact) in found
    assert refusal(f"file://{tiny_artifact}").endswith(found.removeprefix(str(tiny_artifact)))
    assert not (tiny_artifact.parent / "marker").exists()


@pytest.mark.parametrize(("attack", "message"), HOSTILE_ENSEMBLES.values(), ids=HOSTILE_ENSEMBLES)
def test_a_hostile_ensemble_is_refused(
    tmp_path: Path, save_artifact: Save, attack: Callable[[Path], Any], message: str
) -> None:
    save_artifact(tmp_path / "artifact", ensemble=MEMBERS)
    attack(tmp_path / "artifact")
    assert message in refusal(tmp_path / "artifact")


def test_exchanged_members_load_where_the_check_of_reference_outputs_is_off(
    tmp_path: Path, save_artifact: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_artifact(tmp_path, ensemble=MEMBERS)
    HOSTILE_ENSEMBLES["members exchanged"][0](tmp_path)
    monkeypatch.setattr(artifact.reference, "check", nothing)
    assert len(artifact.load(str(tmp_path)).others) == 2


def test_an_ensemble_is_saved_and_loaded_whole(tmp_path: Path, save_artifact: Save) -> None:
    """The primary member has the names of a single model; preprocessing is stored once."""
    digest = save_artifact(tmp_path / "a", ensemble=MEMBERS)
    found = artifact.load(str(tmp_path / "a"), digest)
    assert found.manifest.ensemble == artifact.Ensemble(members=3, primary=2, combine="max")
    assert manifest_of(tmp_path / "a")["ensemble"] == MEMBERS
    held = load_tensors((tmp_path / "a" / WEIGHTS).read_bytes())
    assert sum("preprocessing." in name for name in held) == sum(
        name.startswith("preprocessing.") for name in found.module.state_dict()
    )
    for prefix, member in (("", found.module), ("members.1.", found.others[0]),
                           ("members.3.", found.others[1])):  # fmt: skip
        assert torch.equal(member.network.encoder[0].weight, held[f"{prefix}{FIRST}"])
        kept = member.preprocessing.state_dict()
        assert all(
            torch.equal(kept[n], v) for n, v in found.module.preprocessing.state_dict().items()
        )
        assert not any(weight.requires_grad for weight in member.parameters())
    manifest = found.manifest
    reference = load_tensors((tmp_path / "a" / REFERENCE).read_bytes())
    assert reference["output_of_members"].shape == (2, 8, 12)
    again = artifact.save(
        str(tmp_path / "b"), module=found.module, others=found.others, ensemble=manifest.ensemble,
        features=manifest.features, calibration=manifest.calibration, reference_rows=reference["rows"],
        name=manifest.name, metrics=manifest.metrics, job=manifest.job,
        provenance=manifest.provenance,
    )  # fmt: skip
    assert again == digest  # the same members are the same bytes


def test_an_artifact_from_before_ensembles_loads(tiny_artifact: Path, rows: np.ndarray) -> None:
    expected = Predictor.load(str(tiny_artifact)).score(rows)
    tree = manifest_of(tiny_artifact)
    assert tree.pop("ensemble") is None
    (tiny_artifact / MANIFEST).write_text(json.dumps(tree))
    before = Predictor.load(str(tiny_artifact))
    assert (before.artifact.others, before.combine, len(before.members)) == ((), "mean", 1)
    np.testing.assert_array_equal(before.score(rows).score, expected.score)


def spin() -> None:
    while True:
        pass


def test_the_bomb_and_the_fence_are_real(tmp_path: Path) -> None:
    pickle.loads(bomb(tmp_path / "artifact")).close()
    assert (tmp_path / "marker").exists()
    with fenced(), pytest.raises(MemoryError):
        bytearray(2**30)
    with pytest.raises(TooLongError), fenced(cpu_s=0.05):
        spin()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TooLongError), fenced(wall_s=0.05):
        (tmp_path / "pipe").read_bytes()


def nothing(*_: Any, **__: Any) -> None:
    return None


# With the protection gone, the same attack loads: the refusals above are its work.
CONTROLS = [
    ("pickle model.pkl", artifact.folder, "_no_other_files"),
    ("MLmodel with code", artifact.folder, "_no_other_files"),
    ("link to weights", storage, "irregular"),
    ("hard link", storage, "irregular"),
    ("another weight", artifact.reference, "check"),
    ("another reference output", artifact.reference, "check"),
    ("key twice", artifact.untrusted, "_unique"),
]


@pytest.mark.parametrize(("attack", "module", "protection"), CONTROLS)
def test_the_attack_loads_where_its_protection_is_off(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, attack: str, module: Any, protection: str
) -> None:
    HOSTILE[attack][0](tiny_artifact)
    monkeypatch.setattr(module, protection, dict if protection == "_unique" else nothing)
    assert artifact.load(str(tiny_artifact)).manifest.name == "tiny"


def test_nan_weights_would_be_caught_twice(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HOSTILE["NaN"][0](tiny_artifact)
    monkeypatch.setattr(artifact.untrusted, "require_finite", nothing)
    assert "reference code is not reproduced (off by nan)" in refusal(tiny_artifact)


def test_saved_loaded_and_sealed_again_it_is_the_same(
    tmp_path: Path, save_artifact: Save, rows: np.ndarray
) -> None:
    digest = save_artifact(tmp_path / "a")
    before = Predictor.load(str(tmp_path / "a"), digest)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        MANIFEST,
        WEIGHTS,
        REFERENCE,
    ]
    assert before.artifact.digest == digest
    assert (
        before.artifact.digest
        == hashlib.sha256((tmp_path / "a" / MANIFEST).read_bytes()).hexdigest()
    )
    assert save_artifact(tmp_path / "b") == digest  # the same model is the same bytes
    assert save_artifact(tmp_path / "c", seed=1) != digest
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    seal(tmp_path / "moved")
    after = Predictor.load(f"file://{tmp_path / 'moved'}")
    assert after.artifact.manifest == before.artifact.manifest
    np.testing.assert_array_equal(after.encode(rows), before.encode(rows))
    assert not any(weight.requires_grad for weight in after.module.parameters())
    assert not after.module.training


def test_saving_keeps_every_bit_of_the_module(
    tmp_path: Path, rows: np.ndarray, save_artifact: Save
) -> None:
    save_artifact(tmp_path)
    module = artifact.load(str(tmp_path)).module
    features = artifact.FeatureRecord.model_validate(manifest_of(tmp_path)["features"])
    other = tmp_path / "other"
    artifact.save(
        str(other),
        module=module,
        features=features,
        calibration=artifact.load(str(tmp_path)).manifest.calibration,
        reference_rows=torch.from_numpy(rows[:3]),
        name="tiny",
        metrics={},
        job={},
        provenance={},
    )
    again = artifact.load(str(other)).module.state_dict()
    assert again.keys() == module.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in module.state_dict().items())


def test_loading_draws_no_random_number(tiny_artifact: Path) -> None:
    before = torch.random.get_rng_state()
    artifact.load(str(tiny_artifact))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("file", [WEIGHTS, REFERENCE, MANIFEST])
def test_any_flipped_bit_is_refused(tiny_artifact: Path, file: str) -> None:
    digest = hashlib.sha256((tiny_artifact / MANIFEST).read_bytes()).hexdigest()
    good = (tiny_artifact / file).read_bytes()
    for k, place in enumerate(np.linspace(0, len(good) - 1, 100).astype(int)):
        bad = bytearray(good)
        bad[place] ^= 1 << (k % 8)
        (tiny_artifact / file).write_bytes(bad)
        with pytest.raises(ArtifactError) as caught:
            artifact.load(str(tiny_artifact), digest)
        words = "manifest digest is" if file == MANIFEST else "the file was changed"
        assert words in str(caught.value), (place, k % 8)
    (tiny_artifact / file).write_bytes(good)
    assert artifact.load(str(tiny_artifact), digest).digest == digest


def test_a_flipped_manifest_without_a_pinned_digest_never_crashes(tiny_artifact: Path) -> None:
    """Only the digest protects free text; all else of the manifest is checked against the files."""
    good = (tiny_artifact / MANIFEST).read_bytes()
    accepted = 0
    for place in np.linspace(0, len(good) - 1, 200).astype(int):
        bad = bytearray(good)
        bad[place] ^= 1 << (int(place) % 7)
        (tiny_artifact / MANIFEST).write_bytes(bad)
        try:
            module = artifact.load(str(tiny_artifact)).module
        except ArtifactError:
            continue
        accepted += 1
        assert module.spec.network.widths == (7, 5)
    assert accepted < 50


@pytest.mark.parametrize("file", [WEIGHTS, REFERENCE, MANIFEST])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_a_cut_or_grown_or_missing_file_is_refused(
    tiny_artifact: Path, file: str, share: float
) -> None:
    path = tiny_artifact / file
    good = path.read_bytes()
    grown = b" " if share == 1.0 and file != MANIFEST else b""
    path.write_bytes(good[: int(len(good) * share)] + grown)
    if share == 1.0 and file == MANIFEST:
        path.unlink()
    assert f"{file}: " in refusal(tiny_artifact)


def test_an_older_manifest_with_newer_weights_is_refused(
    tiny_artifact: Path, save_artifact: Save
) -> None:
    older = (tiny_artifact / MANIFEST).read_bytes()
    save_artifact(tiny_artifact, seed=1)
    assert artifact.load(str(tiny_artifact)).manifest.provenance == {"seed": 1}
    (tiny_artifact / MANIFEST).write_bytes(older)
    assert "model.safetensors: SHA-256 is" in refusal(tiny_artifact)


def test_another_digest_than_the_registered_one(tiny_artifact: Path) -> None:
    found = hashlib.sha256((tiny_artifact / MANIFEST).read_bytes()).hexdigest()
    assert refusal(tiny_artifact, "0" * 64) == (
        f"{tiny_artifact}: manifest digest is {found[:12]}, registered is 000000000000"
    )


def test_nowhere_and_a_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == (
        f"{tmp_path}/nowhere/manifest.json: missing; this is not a complete artifact"
    )
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file") == f"{tmp_path}/file/manifest.json: Not a directory"


@pytest.mark.parametrize("function", ["write", "replace", "fsync"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("over", [False, True], ids=["fresh", "over another"])
def test_a_save_that_dies_leaves_the_old_one_whole_or_nothing_that_loads(
    tmp_path: Path,
    save_artifact: Save,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    k: int,
    over: bool,
) -> None:
    """Whatever dies at whichever file: no mixture loads, and saving again mends it."""
    old = save_artifact(tmp_path, seed=1) if over else None
    owner = storage if function == "write" else os
    real, calls = getattr(owner, function), iter(range(1, 100))

    def dies(*args: Any) -> Any:
        if next(calls) == k:
            raise OSError(28, "No space left on device")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, dies)
        with pytest.raises(OSError, match="No space left"):
            save_artifact(tmp_path)
    if over:
        assert artifact.load(str(tmp_path), old).manifest.provenance == {"seed": 1}
    else:
        missing = f"{tmp_path}/{MANIFEST}: missing; this is not a complete artifact"
        assert refusal(tmp_path) == missing
    for file in (WEIGHTS, MANIFEST):  # what kill -9 leaves of a write
        (tmp_path / f".{file}.0a1b2c3d.tmp").write_bytes(b"half")
    assert artifact.load(str(tmp_path), save_artifact(tmp_path)).manifest.provenance == {"seed": 0}
    assert sorted(storage.names(str(tmp_path))) == sorted([MANIFEST, WEIGHTS, REFERENCE])


def test_a_folder_with_other_files_is_not_written_to(tmp_path: Path, save_artifact: Save) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError) as caught:
        save_artifact(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: unexpected file 'thesis.tex'; an artifact holds "
        "manifest.json, model.safetensors, reference.safetensors"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {MANIFEST: '{"format": 1, "shards": []}'},
            f"/{MANIFEST}: not the manifest of an artifact; move it away, or save elsewhere",
        ),
        (
            {MANIFEST: "half a manif"},
            f"/{MANIFEST}: not the manifest of an artifact; move it away, or save elsewhere",
        ),
        (
            {WEIGHTS: "of another program"},
            f": holds '{WEIGHTS}' without {MANIFEST}, so it is not an artifact; move it away, or "
            "save elsewhere",
        ),
    ],
    ids=["of a dataset", "cut", "weights alone"],
)
@pytest.mark.parametrize("beside", [{}, {"notes.txt": "mine"}], ids=["alone", "beside another"])
def test_what_is_not_an_artifacts_is_never_replaced(
    tmp_path: Path,
    save_artifact: Save,
    files: dict[str, str],
    message: str,
    beside: dict[str, str],
) -> None:
    """Files of the names of an artifact's, and a manifest beside other files: refused, and kept."""
    for name, text in (files | beside).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError) as caught:
        save_artifact(tmp_path)
    assert (
        str(caught.value).startswith(f"{tmp_path}: unexpected file")
        if beside
        else (str(caught.value) == f"{tmp_path}{message}")
    )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files | beside


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"mse": float("nan")}}, "metrics.mse: input should be a finite number"),
        (
            {"reference_rows": torch.zeros(0, 12)},
            "reference rows of shape (0, 12), expected 1 to 1024",
        ),
        ({"weight": float("nan")}, "tensor 'network.decoder.1.weight' holds NaN or infinity"),
        ({"weight": 3e38}, "tensor 'output' holds NaN or infinity"),
    ],
    ids=["metric", "no rows", "NaN weight", "overflow"],
)
def test_what_could_not_load_is_not_saved(
    tmp_path: Path, tiny_artifact: Path, changes: Tree, message: str
) -> None:
    good = artifact.load(str(tiny_artifact))
    for parameter in good.module.parameters():
        parameter.fill_(20.0)  # every unit saturates
    fields = {"reference_rows": torch.zeros(2, 12), "metrics": {}} | changes
    good.module.network.decoder[-1].weight.fill_(fields.pop("weight", 0.1))
    with pytest.raises(ArtifactError) as caught:
        artifact.save(
            str(tmp_path / "new"),
            module=good.module,
            features=good.manifest.features,
            calibration=good.manifest.calibration,
            name="tiny",
            job={},
            provenance={},
            **fields,
        )
    assert message in str(caught.value)
    assert not (tmp_path / "new").exists()


AUDIT = """
import json, pickle, sys
import numpy as np
from hourglass.errors import ArtifactError
from hourglass.inference.predictor import Predictor

warm, good, bad, bomb = sys.argv[1:]
row = np.zeros((1, 12), np.float32)
Predictor.load(warm).encode(row)  # what libraries import late, they have imported now
events = []
on = False

def hook(event, args):
    if on:
        events.append((event, str(args[0]) if args else "", str(args[1]) if args[1:] else ""))

def watch(function):
    global on
    events.clear()
    on = True
    try:
        function()
    except ArtifactError:
        pass
    finally:
        on = False
    return list(events)

def attack():
    pickle.load(open(bomb, "rb")).close()
    exec("pass")
    eval("1 + 1")
    __import__("os").system("true")
    sys.modules.pop("colorsys", None)
    import colorsys

sys.addaudithook(hook)
print(json.dumps([
    watch(lambda: Predictor.load(good).encode(row)),
    watch(lambda: Predictor.load(bad)),
    watch(attack),
]))
"""
EXECUTES = (
    "exec", "compile", "import", "pickle.", "marshal.", "code.", "os.system", "os.exec", "os.fork",
    "os.posix_spawn", "os.spawn", "subprocess.", "socket.", "ctypes.", "urllib.", "function.",
)  # fmt: skip


def test_loading_executes_nothing(tmp_path: Path, save_artifact: Save) -> None:
    """Python's audit hook sees no code, import, unpickling, process or connection during a load."""
    for name in ("warm", "good", "bad"):
        (tmp_path / name).mkdir()
        save_artifact(tmp_path / name / "artifact")
    for attack in ("pickle model.pkl", "MLmodel with code", "a package"):
        HOSTILE[attack][0](tmp_path / "bad" / "artifact")
    (tmp_path / "bomb").write_bytes(bomb(tmp_path / "attack"))
    folders = [str(tmp_path / name / "artifact") for name in ("warm", "good", "bad")]
    done = subprocess.run(
        [sys.executable, "-c", AUDIT, *folders, str(tmp_path / "bomb")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    good, bad, attacked = json.loads(done.stdout)
    for events, folder in ((good, folders[1]), (bad, folders[2])):
        assert [event for event in events if event[0].startswith(EXECUTES)] == []
        opened = {path: mode for name, path, mode in events if name == "open"}
        assert set(opened) <= {f"{folder}/{file}" for file in (MANIFEST, WEIGHTS, REFERENCE)}
        assert set(opened.values()) <= {"rb", "r"}
    assert f"{folders[1]}/{WEIGHTS}" in {path for _, path, _ in good}
    seen = {event[0] for event in attacked}
    assert {"pickle.find_class", "exec", "compile", "os.system", "import"} <= seen
    assert (tmp_path / "marker").exists()


def older(folder: Path, version: int) -> None:
    """Rewrite the artifact as format 1 or 2 had it.

    Both have other names; format 1 also float32 buffers, and no mean in model space.
    """

    def narrow(held: dict[str, torch.Tensor]) -> None:
        for name in ("shift_F", "scale_F", "span_C", "mean_C"):
            held[f"preprocessing.{name}"] = held[f"preprocessing.{name}"].float()
        for name in ("rest_F", "same_F", "mean_F"):
            del held[f"preprocessing.{name}"]

    if version == 1:
        tensors(folder, WEIGHTS, narrow)
    (folder / REFERENCE).rename(folder / OLD_REFERENCE)
    tree = manifest_of(folder) | {"format": version}
    tree["files"][OLD_REFERENCE] = tree["files"].pop(REFERENCE)
    if tree["ensemble"]:
        tree["ensemble"]["lead"] = tree["ensemble"].pop("primary")
    (folder / MANIFEST).write_text(json.dumps(tree))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("ensemble", [None, MEMBERS])
def test_an_older_artifact_loads_and_is_replaced(
    version: int, ensemble: Tree | None, tmp_path: Path, save_artifact: Any, rows: np.ndarray
) -> None:
    save_artifact(tmp_path, ensemble=ensemble)
    expected = Predictor.load(str(tmp_path)).score(rows).range_mse
    older(tmp_path, version)
    assert sorted(storage.names(str(tmp_path))) == [OLD_REFERENCE, MANIFEST, WEIGHTS]
    loaded = Predictor.load(str(tmp_path))
    close = 1e-5 if version == 1 else 0.0  # float32 buffers round
    np.testing.assert_allclose(loaded.score(rows).range_mse, expected, rtol=close)
    assert loaded.artifact.manifest.ensemble == (
        None if ensemble is None else artifact.Ensemble.model_validate(ensemble)
    )
    save_artifact(tmp_path, seed=1)
    assert sorted(storage.names(str(tmp_path))) == [MANIFEST, WEIGHTS, REFERENCE]
    assert artifact.load(str(tmp_path)).manifest.provenance == {"seed": 1}


@pytest.mark.parametrize("ends", [WEIGHTS, REFERENCE, OLD_REFERENCE])
def test_an_older_artifact_is_replaced_by_a_save_cut_short(
    ends: str, tmp_path: Path, save_artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever part of the cleanup fails, the new artifact loads and the next save cleans up."""
    save_artifact(tmp_path)
    older(tmp_path, 2)
    with monkeypatch.context() as patch:
        for name in ("move", "remove"):
            real = getattr(storage, name)

            def call(uri: str, *to: str, real: Any = real) -> None:
                if [uri, *to][-1].endswith(ends):
                    raise OSError("cut short")
                real(uri, *to)

            patch.setattr(storage, name, call)
        save_artifact(tmp_path, seed=1)
    assert OLD_REFERENCE in storage.names(str(tmp_path))
    assert artifact.load(str(tmp_path)).manifest.provenance == {"seed": 1}
    save_artifact(tmp_path, seed=2)
    assert sorted(storage.names(str(tmp_path))) == [MANIFEST, WEIGHTS, REFERENCE]


def test_an_artifact_of_format_1_gives_the_bits_it_gave(tmp_path: Path, save_artifact: Any) -> None:
    save_artifact(tmp_path / "old", drop_constant=True)
    older(tmp_path / "old", 1)
    module = artifact.load(str(tmp_path / "old")).module
    held = load_tensors((tmp_path / "old" / WEIGHTS).read_bytes())
    shift, scale, mean, kept = (
        held[f"preprocessing.{name}"] for name in ("shift_F", "scale_F", "mean_C", "kept_F")
    )
    rows = torch.randn(50, 12) * 3
    rows[3, 2], rows[4, 7] = torch.nan, torch.inf
    for raw in (rows, rows.double()):
        seen = raw[:, kept]
        filled = torch.where(torch.isfinite(seen), seen, mean[kept].to(seen.dtype))
        assert torch.equal(module.preprocessing(raw), ((filled - shift) / scale).float())
    whole = (torch.rand(50, 12) * 255).to(torch.uint8)
    expected = whole[:, kept].float().sub(shift).div(scale)
    assert torch.equal(module.preprocessing(whole), expected)


@pytest.mark.parametrize("missing", ["shift_F", "kept_F"])
def test_a_damaged_artifact_of_format_1_is_refused(
    missing: str, tmp_path: Path, save_artifact: Any
) -> None:
    save_artifact(tmp_path / "old")
    older(tmp_path / "old", 1)
    tensors(tmp_path / "old", WEIGHTS, lambda held: held.pop(f"preprocessing.{missing}"))
    with pytest.raises(ArtifactError, match=r"tensor '.*' does not fit the spec"):
        artifact.load(str(tmp_path / "old"))


def once_after(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, ends: str, what: Callable[[], Any]
) -> None:
    """`what` happens once, right after `owner.name` was called for a path with this end."""
    real, left = getattr(owner, name), [what]

    def call(path: str, *args: Any) -> Any:
        done = real(path, *args)
        if path.endswith(ends) and left:
            left.pop()()
        return done

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("after", [MANIFEST, WEIGHTS])
@pytest.mark.parametrize("reads", [saving.READS, 1])
def test_an_artifact_that_is_replaced_while_it_is_read(
    tmp_path: Path, save_artifact: Save, monkeypatch: pytest.MonkeyPatch, after: str, reads: int
) -> None:
    """It is read anew; with a single read, as the control, another file than listed is found."""
    save_artifact(tmp_path)
    monkeypatch.setattr(saving, "READS", reads)
    once_after(monkeypatch, untrusted, "read_file", after, lambda: save_artifact(tmp_path, seed=1))
    if reads == 1:
        with pytest.raises(ArtifactError, match="the file was changed"):
            artifact.load(str(tmp_path))
    else:
        assert artifact.load(str(tmp_path)).manifest.provenance == {"seed": 1}


def test_a_file_that_takes_its_name_while_it_is_read(
    tmp_path: Path, save_artifact: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's save has written its manifest, and gives the files their names only now."""
    save_artifact(tmp_path)
    waiting = {
        file: saving._waiting(file, entry["sha256"])
        for file, entry in manifest_of(tmp_path)["files"].items()
    }
    for file, name in waiting.items():
        (tmp_path / file).rename(tmp_path / name)

    def named() -> None:
        for file, name in waiting.items():
            (tmp_path / name).rename(tmp_path / file)

    once_after(monkeypatch, storage, "names", "", named)
    assert artifact.load(str(tmp_path)).manifest.provenance == {"seed": 0}


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("ends", [MANIFEST, "model.safetensors"])
def test_two_saves_into_one_folder(
    tmp_path: Path,
    save_artifact: Save,
    monkeypatch: pytest.MonkeyPatch,
    waits: bool,
    ends: str,
) -> None:
    """The second waits for the first, and the folder loads; where none can wait, the loser is told."""
    save_artifact(tmp_path)
    others: list[threading.Thread] = []
    reported: list[str] = []

    def other() -> None:
        others.append(threading.Thread(target=save_artifact, args=(tmp_path,), kwargs={"seed": 2}))
        others[0].start()
        if not waits:
            others[0].join()

    if not waits:

        def no_locks(*_: Any) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(saving.fcntl, "flock", no_locks)
    if ends == MANIFEST:
        once_after(monkeypatch, storage, "write", ends, other)
    else:
        real = storage.move

        def move(uri: str, to: str) -> None:
            real(uri, to)
            if to.endswith(ends) and not others:
                other()

        monkeypatch.setattr(storage, "move", move)
    try:
        save_artifact(tmp_path, seed=1)
    except ArtifactError as error:
        reported.append(str(error))
    others[0].join()
    if waits:
        assert not reported
        assert artifact.load(str(tmp_path)).manifest.provenance == {"seed": 2}
        assert sorted(storage.names(str(tmp_path))) == sorted([MANIFEST, WEIGHTS, REFERENCE])
    else:
        assert reported[0].startswith(
            f"{tmp_path}: another process saved here at the same time ({tmp_path}: manifest digest is "
        )
        assert reported[0].endswith("); save again, or elsewhere")


@pytest.mark.parametrize(
    ("version", "name"), [(1, "batch_size"), (2, "batch_size"), (3, "batch_rows")]
)
def test_the_job_of_an_older_artifact_has_the_current_names(
    version: int, name: str, tmp_path: Path, save_artifact: Any
) -> None:
    save_artifact(tmp_path / "old")
    if version < 3:
        older(tmp_path / "old", version)
    claim("job", {"kind": "train", "train": {"epochs": 3, "batch_rows": 32}})(tmp_path / "old")
    read = parse_manifest("", (tmp_path / "old" / MANIFEST).read_bytes())
    assert read.job == {"kind": "train", "train": {"epochs": 3, name: 32}}
