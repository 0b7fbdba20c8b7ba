"""One SQLite store a file, and a client that gives up at once."""

import sys
from pathlib import Path

import pytest

from hourglass.settings import Settings
from hourglass.tracking import mlflow as store
from hourglass.tracking import tracker

sys.path.insert(0, str(Path(__file__).parent))
from tracking_kit import at


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No retries inside MLflow, so that a fault is noticed at once; an empty current folder."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracker, "RETRY_S", 0.2)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One SQLite store for the module: making its schema takes seconds."""
    made = at(tmp_path_factory.mktemp("home"))
    store.client(made)
    return made
