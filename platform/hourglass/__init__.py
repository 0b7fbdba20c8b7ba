"""Distributed autoencoders on Ray. Public names load lazily, so `import hourglass` costs nothing."""

import os
from typing import TYPE_CHECKING, Any

# Without it, MKL, PyTorch's matrix library on x86, rounds a row by its place in a batch on some CPUs. MKL
# reads it when it first computes, so every process that imports hourglass must set it before that.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"
__all__ = ["Autoencoder", "Predictor", "__version__", "load"]

if TYPE_CHECKING:
    from hourglass.estimator import Autoencoder
    from hourglass.inference.predictor import Predictor


def load(path: str) -> "Predictor":
    """Load a verified artifact (a folder or `s3://` URI) for encode, hash, anomaly, reconstruct.

    Raises: ArtifactError when anything about the artifact is not as its manifest says.
    """
    from hourglass.inference.predictor import Predictor

    return Predictor.load(path)


def __getattr__(name: str) -> Any:
    if name == "Autoencoder":
        from hourglass.estimator import Autoencoder

        return Autoencoder
    if name == "Predictor":
        from hourglass.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'hourglass' has no attribute {name!r}")
