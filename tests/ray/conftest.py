"""A cluster of two CPUs and a few rows, for the files that need no more."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hourglass.tracking.mlflow import DEFAULTS

sys.path.insert(0, str(Path(__file__).parent))
from cluster_kit import project, write_shards


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A project folder; its cluster is this module's own."""
    os.environ |= DEFAULTS  # Ray Tune imports MLflow, and it logs for good as it then finds
    with project() as folder:
        yield folder


@pytest.fixture(scope="module")
def shards(home: Path) -> Path:
    """Two shards of 200 rows."""
    folder = home / "rows"
    folder.mkdir()
    return write_shards(folder)
