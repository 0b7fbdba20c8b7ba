"""The one base of every spec: frozen, closed to unknown fields, finite numbers only."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen value object. Change one through `model_validate`, never `model_copy(update=)`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )
