"""The modules of an artifact as the named tensors of one file, and back."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hourglass import storage
from hourglass.artifact.manifest import MANIFEST, WEIGHTS, Ensemble, Manifest
from hourglass.errors import ArtifactError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.preprocessing import Preprocessing

SHARED = "preprocessing."


def of(ensemble: Ensemble | None, members: Sequence[AutoencoderModule]) -> dict[str, Tensor]:
    """The tensors of `members`, the primary one first, by their names in the file."""
    named = _names(ensemble, members[0].state_dict())
    return {
        stored[name]: value.detach().contiguous()
        for stored, member in zip(named, members, strict=True)
        for name, value in member.state_dict().items()
    }


def _names(ensemble: Ensemble | None, names: Iterable[str]) -> list[dict[str, str]]:
    """For each member, the primary one first: the names of its tensors, mapped to those in the file.

    All members share one preprocessing, which is stored once.
    """
    prefixes = ["", *(f"members.{number}." for number in (ensemble.others if ensemble else ()))]
    names = list(names)
    return [
        {name: name if name.startswith(SHARED) else prefix + name for name in names}
        for prefix in prefixes
    ]


def build(uri: str, manifest: Manifest, weights: dict[str, Tensor]) -> list[AutoencoderModule]:
    """The members, the primary one first, from tensors whose names and shapes must match the spec."""
    path = storage.join(uri, WEIGHTS)
    features = manifest.features
    try:
        with torch.device("meta"):  # shapes first: a hostile spec must not make us allocate
            module = _module(manifest)
    except ValueError as error:
        raise ArtifactError(f"{storage.join(uri, MANIFEST)}: {error}") from None
    own = module.state_dict()
    every = _names(manifest.ensemble, own)
    expected = {stored: own[name] for names in every for name, stored in names.items()}
    if sorted(expected) != sorted(weights):
        odd = sorted(set(expected) ^ set(weights))[0]
        raise ArtifactError(f"{path}: tensor '{odd}' does not fit the spec")
    for name, tensor in sorted(weights.items()):
        want = expected[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            raise ArtifactError(
                f"{path}: tensor '{name}' is {tensor.dtype} {tuple(tensor.shape)}, "
                f"the spec implies {want.dtype} {tuple(want.shape)}"
            )
    kept = weights["preprocessing.kept_F"]
    if int(kept.min()) < 0 or int(kept.max()) >= features.width or bool((kept.diff() <= 0).any()):
        raise ArtifactError(f"{path}: tensor 'preprocessing.kept_F' does not select columns")
    members = []
    for names in every:
        with torch.device("meta"):
            member = _module(manifest).to_empty(device="cpu")
        member.load_state_dict({name: weights[stored] for name, stored in names.items()})
        members.append(member.eval().requires_grad_(False))
    return members


def _module(manifest: Manifest) -> AutoencoderModule:
    features = manifest.features
    preprocessing = Preprocessing(features.width, features.kept)
    return AutoencoderModule(manifest.model, preprocessing, manifest.unit_data)
