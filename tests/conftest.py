"""Shared by every test: one torch thread, and small artifacts made in a moment."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from hourglass import artifact
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.preprocessing import ColumnStats, Preprocessing, Range
from hourglass.model.spec import ModelSpec

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # scikit-learn then checks array API input as well
torch.set_num_threads(1)
settings.register_profile("hourglass", deadline=None, derandomize=True, database=None)
settings.load_profile("hourglass")

COLUMNS = 12
CLUSTERS = {"ray", "docs", "browser"}
"""Folders of tests that start clusters and servers, and mostly wait for them."""
LONG = (
    "test_readme.py",
    "test_train.py",
    "test_tune_ends.py",
    "test_batch.py",
    "test_tune.py",
    "test_cluster.py",
)
"""Of their files those that take longest, in the order in which they begin."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Clusters first: they take longest."""
    items.sort(key=_begins)


def _begins(item: pytest.Item) -> int:
    if not _has_cluster(item.path):
        return len(LONG) + 1
    return LONG.index(item.path.name) if item.path.name in LONG else len(LONG)


def _has_cluster(file: Path) -> bool:
    return file.parent.name in CLUSTERS


class FromBothEnds(LoadScopeScheduling):  # type: ignore[misc]
    """Deals files: two processes begin with clusters, the others with the rest.

    Three clusters at a time are slower on two cores than two, so the others take none.
    """

    def _split_scope(self, nodeid: str) -> str:
        """Tests of one file are run by one process, in order."""
        return nodeid.partition("::")[0]

    def _assign_work_unit(self, node: Any) -> None:
        if self._takes_the_rest(node):
            last = next(reversed(self.workqueue))
            if _has_cluster(Path(last)):
                node.shutdown()
                return
            self.workqueue.move_to_end(last, last=False)
        super()._assign_work_unit(node)

    def _takes_the_rest(self, node: Any) -> bool:
        return self.nodes.index(node) >= 2


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What xdist asks for its way of dealing tests."""
    return FromBothEnds(config, log)


def column_stats(rows: Any) -> ColumnStats:
    """The figures of `rows` by NumPy, missing cells left out."""
    cells = np.asarray(rows, dtype=np.float64)
    return ColumnStats(
        np.nanmean(cells, 0), np.nanstd(cells, 0), np.nanmin(cells, 0), np.nanmax(cells, 0)
    )


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    """300 rows of 12 columns, float32; column 5 is constant."""
    made = np.random.default_rng(7).normal(3.0, 2.0, (300, COLUMNS)).astype(np.float32)
    made[:, 5] = 4.5
    return made


@pytest.fixture(scope="session")
def save_artifact(rows: np.ndarray) -> Callable[..., str]:
    """`save_artifact(folder, ...)` writes an untrained model of `rows`; returns its digest."""

    def save(
        folder: Path | str,
        *,
        model: dict[str, Any] | None = None,
        seed: int = 0,
        drop_constant: bool = False,
        of: np.ndarray = rows,
        features: dict[str, Any] | None = None,
        ensemble: dict[str, Any] | None = None,
    ) -> str:
        spec = ModelSpec.model_validate(
            model or {"network": {"widths": [7, 5], "activation": "tanh"}}
        )
        torch.manual_seed(seed)
        preprocessing = Preprocessing.fit(Range(), column_stats(of), drop_constant)
        members = artifact.Ensemble.model_validate(ensemble) if ensemble else None
        module, *others = (
            AutoencoderModule(spec, preprocessing, unit_data=False)
            for _ in range(members.members if members else 1)
        )
        record = {"vector": "image", "columns": (), "width": of.shape[1], "missing": "error"}
        record |= {"dtype": str(of.dtype), "kept": len(preprocessing.kept_F)} | (features or {})
        code_width = spec.network.code_width
        return artifact.save(
            str(folder),
            module=module,
            features=artifact.FeatureRecord.model_validate(record),
            calibration=artifact.Calibration(
                rows=len(of),
                quantile=0.99,
                threshold=0.5,
                quantiles={"0.5": 0.1, "0.99": 0.5},
                hash_threshold=(0.0,) * code_width,
            ),
            reference_rows=torch.from_numpy(of[:8]),
            name="tiny",
            metrics={"holdout_mse": 0.25},
            job={"kind": "train"},
            provenance={"seed": seed},
            ensemble=members,
            others=others,
        )

    return save


@pytest.fixture
def tiny_artifact(tmp_path: Path, save_artifact: Callable[..., str]) -> Path:
    """The folder of a small, good artifact, of this test alone."""
    save_artifact(tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of an S3 API over HTTP on loopback, reached by the usual AWS variables alone."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
        s3fs.S3FileSystem().rm("bucket", recursive=True)  # moto's buckets outlive its server
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def _own_environment() -> Iterator[None]:
    """What a module's cluster puts into the environment (token path, address) ends with it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
