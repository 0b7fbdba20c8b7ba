"""The notebook face: an autoencoder by scikit-learn's conventions, in this process, without Ray.

It is the same spec, loop, calibration and artifact as a run on a cluster, so what it saves is
scored, registered and served like any other model.
Shapes: B rows, C columns, K code units.
"""

import math
import warnings
from collections.abc import Callable
from inspect import signature
from numbers import Real
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from hourglass.data import arrays
from hourglass.data.arrays import VECTOR
from hourglass.data.decode import Matrix
from hourglass.estimator import in_memory, parameters
from hourglass.estimator.in_memory import InputError, about_arguments, numbers, require_finite
from hourglass.inference import generate
from hourglass.inference.neighbours import Index
from hourglass.inference.predictor import Predictor
from hourglass.training.state import Record

Kind = TypeVar("Kind", bound=np.generic)


class Autoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """An autoencoder of rows: `fit`, then `encode`, `hash`, `anomaly`, `reconstruct`, `decode`,
    `denoise`, `similar`, `generate`, `interpolate`, `traverse`.

    Parameters have the names and values of a job file (docs/notebook.md): a part is its kind, such
    as "bce", or a mapping, such as {"kind": "gaussian", "sd": 0.1}; `network` is a mapping in place
    of the dense network's own parameters. They are checked by `fit`, which raises SpecError listing
    every mistake.

    Rows are arrays, lists, pandas, polars or Arrow tables of numeric columns, or a table with one
    column of equally long lists.

    Attributes: `predictor_` (what answers), `history_` (one record for each epoch, naming the member
    where there are several `seeds`), `dataset_`
    (rows trained on, held out, dropped; cells imputed; constant columns), `threshold_` (score above
    which a row is an anomaly; may be set), `n_features_in_`, `feature_names_in_` where columns have
    names.
    """

    def __init__(
        self,
        widths: Any = None,
        *,
        decoder: Any = None,
        activation: str = "tanh",
        code_activation: str | None = None,
        output_activation: str = "auto",
        tied: bool = False,
        norm: str = "none",
        dropout: float = 0.0,
        network: Any = None,
        preset: str | None = None,
        corruption: Any = None,
        code: Any = None,
        loss: Any = None,
        trim: float | None = None,
        scaled_score: bool | None = None,
        penalties: Any = None,
        adversary: Any = None,
        scaling: Any = None,
        constant: str = "keep",
        missing: str = "error",
        holdout: float = 0.1,
        epochs: int | None = None,
        batch_size: int = 256,
        optimizer: Any = "adam",
        lr: float | None = None,
        schedule: Any = None,
        clip_norm: float | None = None,
        early_stop: Any = None,
        phases: Any = None,
        seeds: int | None = None,
        combine: str = "mean",
        quantile: float = 0.99,
        accelerator: str = "auto",
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.widths = widths
        self.decoder = decoder
        self.activation = activation
        self.code_activation = code_activation
        self.output_activation = output_activation
        self.tied = tied
        self.norm = norm
        self.dropout = dropout
        self.network = network
        self.preset = preset
        self.corruption = corruption
        self.code = code
        self.loss = loss
        self.trim = trim
        self.scaled_score = scaled_score
        self.penalties = penalties
        self.adversary = adversary
        self.scaling = scaling
        self.constant = constant
        self.missing = missing
        self.holdout = holdout
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.early_stop = early_stop
        self.phases = phases
        self.seeds = seeds
        self.combine = combine
        self.quantile = quantile
        self.accelerator = accelerator
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the rows of `X` (B, C); the same rows and `random_state` give the same bits.

        Raises: SpecError for wrong parameters, InputError (a ValueError) for rows that do not fit,
        TrainingError when a value becomes non-finite.
        """
        before = dict(vars(self))
        try:
            rows, vector = self._rows(X, reset=True)
            names = None if vector else getattr(self, "feature_names_in_", None)
            usual = {name: what.default for name, what in signature(type(self)).parameters.items()}
            vector = vector or VECTOR
            job = parameters.job_of(self.get_params(deep=False), usual, vector, names)
            with about_arguments():
                say = print if self.verbose else _silent
                fitted = in_memory.fit(job, rows, vector, names, say)
        except BaseException:  # what was fitted before stays whole
            self.__dict__ = before
            raise
        self.dataset_ = fitted.dataset
        return self._adopt(Predictor(fitted.artifact, str(fitted.device)), fitted.reference_rows)

    def encode(self, X: Any, layer: int | None = None) -> NDArray[np.float32]:
        """Codes (B, K), or what encoder layer `layer`, counted from 1, makes of the rows."""
        return self._ask(lambda predictor, rows: predictor.encode(rows, layer), X)

    def hash(self, X: Any) -> NDArray[np.uint8]:
        """Hashes (B, ceil(K / 8)): one bit for each code unit, the first in the highest bit."""
        return self._ask(Predictor.hash, X)

    def anomaly(self, X: Any) -> NDArray[np.float64]:
        """Scores (B,), the mean squared error in model space; higher = more abnormal.

        With several `seeds`, `combine` of the members' scores.
        """
        return self._ask(Predictor.anomaly, X)

    def feature_errors(self, X: Any) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Each feature's part of `anomaly`, which add up to it, and its error in the units of the rows.

        (B, F) each, of the F features kept: row minus reconstruction, that of the primary member of an
        ensemble; NaN for a missing cell, whose part is that of the column's mean in its place.
        """
        rows, _ = self._rows(X)
        with about_arguments():
            found = self.predictor_.score(rows, reconstruction=True, feature_errors=True)
        kept = self.predictor_.kept
        assert found.reconstruction is not None
        assert found.feature_errors is not None
        assert found.imputed is not None
        errors = np.asarray(rows[:, kept], np.float64) - found.reconstruction[:, kept]
        return found.feature_errors, np.where(found.imputed, np.nan, errors)

    def reconstruct(self, X: Any) -> NDArray[np.float32]:
        """Reconstructions (B, C), in the units of the rows."""
        return self._ask(Predictor.reconstruct, X)

    def decode(self, code: Any) -> NDArray[np.float32]:
        """Rows (B, C) from codes (B, K). Raises InputError on a wrong width."""
        predictor = self._fitted
        with about_arguments():
            code = arrays.unmasked(code) if arrays.is_masked(code) else code
            return predictor.decode(check_array(code, dtype=np.float32, input_name="code"))

    def generate(self, count: int, seed: int = 0) -> NDArray[np.float32]:
        """`count` new rows (count, C) from codes drawn from the prior the model learned."""
        with about_arguments():
            return generate.prior(self._fitted, count, seed)

    def interpolate(self, X: Any, steps: int = 10) -> NDArray[np.float32]:
        """Rows (steps, C) on the way between the codes of the two rows of `X`, ends included."""
        first, second = self._rows_of(X, 2)
        with about_arguments():
            return generate.interpolate(self._fitted, first, second, steps)

    def traverse(self, X: Any, unit: int, values: Any) -> NDArray[np.float32]:
        """Rows (V, C) from the code of the one row of `X`, with `unit` set to each of V `values`."""
        (row,) = self._rows_of(X, 1)
        with about_arguments():
            return generate.traverse(self._fitted, row, unit, values)

    def denoise(self, X: Any, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Rows with the noise of training on them, and their reconstructions, (B, C) each."""
        rows, _ = self._rows(X)
        with about_arguments():
            return generate.denoise(self._fitted, rows, seed)

    def similar(self, X: Any, queries: Any, k: int = 10) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Distances (Q, k) and numbers (Q, k) of the rows of `X` whose codes are nearest."""
        codes, asked = self.encode(X), self.encode(queries)
        with about_arguments():
            return Index(codes).nearest(asked, k)

    def transform(self, X: Any) -> NDArray[np.float32]:
        """scikit-learn's word for `encode`."""
        return self.encode(X)

    def inverse_transform(self, X: Any) -> NDArray[np.float32]:
        """scikit-learn's word for `decode`."""
        return self.decode(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the mean score of the rows: higher is better, as model selection expects."""
        return -float(self.anomaly(X).mean())

    @property
    def threshold_(self) -> float:
        """The score above which a row is an anomaly: `quantile` of the held-out rows' until it is set."""
        return self._fitted.threshold

    @threshold_.setter
    def threshold_(self, score: float) -> None:
        fitted = self._fitted
        if not isinstance(score, Real) or isinstance(score, bool) or not math.isfinite(score):
            raise InputError(f"threshold_: found {score!r}, allowed are finite numbers")
        fitted.threshold = float(score)

    def set_params(self, **params: Any) -> Self:
        """Set parameters, as scikit-learn does; of a fitted model `quantile` moves `threshold_` at once.

        Where the held-out rows' score at that quantile is not kept, a warning says that it does not.
        Raises: ValueError for an unknown parameter, which sets none.
        """
        before = dict(vars(self))
        try:
            super().set_params(**params)
        except ValueError:
            self.__dict__ = before
            raise
        if "quantile" in params and "predictor_" in vars(self):
            self._move_threshold()
        return self

    def _move_threshold(self) -> None:
        kept, found = self.predictor_.artifact.manifest.calibration, self.quantile
        moves = isinstance(found, Real) and not isinstance(found, bool) and 0.0 < found < 1.0
        score = kept.quantiles.get(f"{found:g}") if moves else None
        if moves and (score is None or float(f"{found:g}") != found):
            score = kept.threshold if found == kept.quantile else None
        if score is None:
            warnings.warn(
                f"quantile={found!r} takes effect with the next fit: threshold_ stays "
                f"{self.threshold_:.6g}. Without one, set threshold_, or a quantile of those kept: "
                f"{', '.join(name for name in kept.quantiles if 0.0 < float(name) < 1.0)}",
                stacklevel=3,
            )
            return
        self.threshold_ = score
        self._quantile = float(found)

    def save(self, path: str, name: str = "autoencoder") -> str:
        """Write the artifact, as a run does, to a folder or s3:// URI; returns its digest.

        It has `threshold_` as it is now. Raises: ArtifactError, DataError for a folder in another
        artifact's, WriteError.
        """
        predictor = self._fitted
        return in_memory.save(str(path), predictor, self._reference_rows, self._quantile, name)

    @classmethod
    def load(cls, path: str) -> Self:
        """The estimator of a saved artifact, a run's included, fitted. Raises ArtifactError."""
        job, loaded, reference_rows = in_memory.load(str(path))
        made = cls(**parameters.of_job(job))
        made.dataset_ = loaded.manifest.provenance.get("dataset", {})
        return made._adopt(Predictor(loaded), reference_rows)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "mean"
        tags.transformer_tags.preserves_dtype = []  # codes are float32
        return tags

    @property
    def _fitted(self) -> Predictor:
        check_is_fitted(self, "predictor_")
        predictor: Predictor = self.predictor_
        return predictor

    def _ask(self, what: Callable[[Predictor, Matrix], NDArray[Kind]], X: Any) -> NDArray[Kind]:
        rows, _ = self._rows(X)
        with about_arguments():
            return what(self.predictor_, rows)

    def _rows_of(self, X: Any, count: int) -> Matrix:
        rows, _ = self._rows(X)
        if len(rows) != count:
            raise InputError(f"X: found {len(rows)} rows, needed are {count}")
        return rows

    def _adopt(self, predictor: Predictor, reference_rows: Tensor) -> Self:
        manifest = predictor.artifact.manifest
        self.predictor_ = predictor
        self._quantile = manifest.calibration.quantile
        self.history_: list[Record] = manifest.provenance.get("history", [])
        self.n_features_in_ = manifest.features.width
        if manifest.features.columns:
            self.feature_names_in_ = np.array(manifest.features.columns, dtype=object)
        self._n_features_out = predictor.code_width
        self._reference_rows = reference_rows
        return self

    def _rows(self, X: Any, reset: bool = False) -> tuple[Matrix, str | None]:
        """Rows (B, C) as numbers, and the name of the vector column they came from, if they did."""
        if not reset:
            check_is_fitted(self, "predictor_")
        with about_arguments():
            rows, vector = numbers(self, X, reset)
        policy = self.missing if reset else self.predictor_.missing
        if policy != "mean" and not (reset and policy == "drop_row"):
            require_finite(rows, vector, getattr(self, "feature_names_in_", None), policy)
        return rows, vector


def _silent(text: str) -> None:
    """Says nothing."""
