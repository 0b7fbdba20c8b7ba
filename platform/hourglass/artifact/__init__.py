"""The artifact: one folder that answers everywhere alike, verified before a weight is used.

    manifest.json          format version, spec, feature schema, calibration, provenance,
                           SHA-256 and size of each other file
    model.safetensors      preprocessing buffers and weights; of an ensemble, those of the lead, and
                           the weights of member i as members.i.NAME
    golden.safetensors     a few raw rows and the outputs they must reproduce

The manifest is written last, so a folder without one is not an artifact. Nothing in it is executed.
"""

from hourglass.artifact.folder import Artifact, load, save
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
)
from hourglass.artifact.untrusted import TENSORS, parse_tensors

__all__ = [
    "FORMAT",
    "GOLDEN",
    "MANIFEST",
    "TENSORS",
    "WEIGHTS",
    "Artifact",
    "Calibration",
    "Ensemble",
    "FeatureRecord",
    "FileRecord",
    "Manifest",
    "load",
    "parse_tensors",
    "save",
]
