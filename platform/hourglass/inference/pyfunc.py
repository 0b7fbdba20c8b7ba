"""The loader module of registered models: `mlflow.pyfunc.load_model("models:/NAME@champion")`.

MLflow imports this module by the name in the model's `MLmodel`; it imports nothing of MLflow.
"""

from collections.abc import Mapping
from typing import Any

from hourglass.data.arrays import unmasked
from hourglass.errors import DataError, nearest
from hourglass.inference.endpoints import ENDPOINTS
from hourglass.inference.predictor import Array, Predictor

OUTPUTS = {endpoint.name: endpoint for endpoint in ENDPOINTS}


class Pyfunc:
    """MLflow's `predict` on top of a predictor."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Array:
        """The output named by `params["output"]` for an array (B, C), or columns by name.

        Raises: DataError for an unknown output, a missing column, or rows that do not fit.
        """
        output = str((params or {}).get("output", next(iter(OUTPUTS))))
        if output not in OUTPUTS:
            raise DataError(
                f"params['output']: found '{output}', allowed are {', '.join(OUTPUTS)}"
                f"{nearest(output, OUTPUTS)}"
            )
        arrays = OUTPUTS[output].compute(self.predictor, self._rows(model_input), ())
        return next(iter(arrays.values()))

    def _rows(self, data: Any) -> Array:
        named = isinstance(data, Mapping) or hasattr(data, "columns")
        return self.predictor.from_columns(data) if named else unmasked(data)


def _load_pyfunc(path: str) -> Pyfunc:
    """MLflow's entry point: load and verify the artifact folder at `path`."""
    return Pyfunc(Predictor.load(path))
