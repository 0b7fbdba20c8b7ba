"""A run from its rows to its artifact, on each of its workers, whoever started them."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from hourglass import artifact, storage
from hourglass.data.feed import Feed
from hourglass.data.schema import FeatureSchema
from hourglass.data.stats import Stats
from hourglass.errors import SpecError
from hourglass.job_files import dump
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.spec import TrainJob
from hourglass.training import members
from hourglass.training.build import build, feature_record
from hourglass.training.calibrate import calibrate
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import Peers
from hourglass.training.knobs import Certificate, certify
from hourglass.training.members import Tell
from hourglass.training.state import Record


@dataclass(frozen=True)
class Run:
    """What makes a run: its job, the figures of its rows, its folder, and what it says of itself."""

    job: TrainJob
    schema: FeatureSchema
    stats: Stats
    uri: str
    data_digest: str
    provenance: dict[str, Any]

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        uri = storage.join(self.uri, "checkpoints")
        return Checkpoints(uri, self.job.run_name, self.data_digest, self.job.scale.workers)

    @property
    def artifact_uri(self) -> str:
        """Where its artifact is once it is finished."""
        return storage.join(self.uri, "artifact")


def complete(run: Run, feed: Feed, peers: Peers, device: torch.device, tell: Tell) -> Record:
    """Certify, train from the newest checkpoint, calibrate; the first worker saves the artifact.

    Returns its metrics. Raises: SpecError, DataError, TrainingError.
    """
    job, stats = run.job, run.stats
    began = time.perf_counter()
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, nothing on a CPU
    certificate = _certify(build(job, stats).to(device), feed, peers, device)
    trained = members.train(job, stats, feed, peers, device, tell, run.checkpoints)
    torch.set_float32_matmul_precision("highest")  # scores as every consumer will compute them
    lead, *others = trained.modules
    calibration, golden, agreement = calibrate(
        [lead, *others], job.train.combine, feed, peers, job.quantile, device
    )
    metrics = trained.best | agreement
    if peers.rank == 0:
        artifact.save(
            run.artifact_uri,
            module=lead,
            features=feature_record(job, run.schema, lead),
            calibration=calibration,
            golden_rows=golden,
            name=job.track.register_as or job.name or "model",
            metrics=metrics,
            job=dump(job),
            provenance={
                **run.provenance,
                "live_knobs": certificate,
                "history": trained.history,
                "seconds": round(time.perf_counter() - began, 3),
            },
            ensemble=trained.ensemble,
            others=others,
        )
    return metrics


def _certify(
    module: AutoencoderModule, feed: Feed, peers: Peers, device: torch.device
) -> Certificate:
    """The first worker tries the knobs on its rows; all of them hear of one that does nothing."""
    found: Certificate | str | None = None
    if peers.rank == 0:
        try:
            found = certify(module, feed, device)
        except SpecError as error:
            found = str(error)
    first = peers.share(found)[0]
    if isinstance(first, str):
        raise SpecError(first)
    return list(first)
