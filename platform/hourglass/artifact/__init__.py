"""The artifact: one folder with the same results everywhere, verified before a weight is used.

    manifest.json            format version, spec, feature schema, calibration, provenance,
                             SHA-256 and size of each other file
    model.safetensors        preprocessing buffers and weights; of an ensemble, those of the primary
                             member, and the weights of member i as members.i.NAME
    reference.safetensors    a few raw rows and the outputs that a loaded model must reproduce

The manifest is written last and lists the other files, so a folder without one is not an artifact, and
one artifact replaces another in one step. Nothing in it is executed.
"""

from hourglass.artifact.folder import Artifact as Artifact
from hourglass.artifact.folder import load as load
from hourglass.artifact.folder import read as read
from hourglass.artifact.folder import rebuild as rebuild
from hourglass.artifact.folder import require_outside as require_outside
from hourglass.artifact.folder import save as save
from hourglass.artifact.manifest import FORMAT as FORMAT
from hourglass.artifact.manifest import MANIFEST as MANIFEST
from hourglass.artifact.manifest import REFERENCE as REFERENCE
from hourglass.artifact.manifest import WEIGHTS as WEIGHTS
from hourglass.artifact.manifest import Calibration as Calibration
from hourglass.artifact.manifest import Ensemble as Ensemble
from hourglass.artifact.manifest import FeatureRecord as FeatureRecord
from hourglass.artifact.manifest import FileRecord as FileRecord
from hourglass.artifact.manifest import Manifest as Manifest
from hourglass.artifact.manifest import parse_manifest as parse_manifest
from hourglass.artifact.untrusted import TENSORS as TENSORS
from hourglass.artifact.untrusted import parse_tensors as parse_tensors
