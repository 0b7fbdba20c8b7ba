"""The base class of every spec: frozen, without unknown fields, with finite numbers only."""

from collections.abc import Iterable
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    GetPydanticSchema,
    ValidationError,
)
from pydantic_core import CoreSchema, InitErrorDetails, core_schema


def _describe_kind(schema: dict[str, Any]) -> None:
    """Describe `kind` in the JSON Schema by the first paragraph of the spec's docstring."""
    kind = schema.get("properties", {}).get("kind")
    if kind is not None and "description" in schema:
        kind["description"] = " ".join(schema["description"].split("\n\n")[0].split())


class Strict(BaseModel):
    """A frozen value object. Change one through `model_validate`, never `model_copy(update=)`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra=_describe_kind,
    )


def canonical(spec: Strict) -> dict[str, Any]:
    """The spec as JSON values: its `kind` and the fields that differ from their defaults, nested.

    It validates to the same spec, and does not change when a field with a default is added.
    """
    fields = type(spec).model_fields
    return {
        fields[name].alias or name: _plain(value)
        for name, value in spec
        if name == "kind" or value != fields[name].get_default(call_default_factory=True)
    }


def _plain(value: Any) -> Any:
    match value:
        case Strict():
            return canonical(value)
        case tuple() | list():
            return [_plain(each) for each in value]
        case dict():
            return {key: _plain(each) for key, each in value.items()}
    return value


def kind_unless_named(kind: str) -> GetPydanticSchema:
    """For a union of parts: fields without a `kind` are those of `kind`, the default."""

    def named(tree: Any) -> Any:
        return {"kind": kind, **tree} if isinstance(tree, dict) else tree

    def published(schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        found = handler(schema)
        found["anyOf"] = found.pop("oneOf")  # without a kind, several parts may match
        return found

    return GetPydanticSchema(
        lambda source, handler: core_schema.no_info_before_validator_function(
            named, handler(source)
        ),
        published,
    )


def mistake(message: str, *place: str) -> InitErrorDetails:
    """A message about the field at `place` in a spec; without a place, about the spec."""
    error = {"error": ValueError(message)}
    return InitErrorDetails(type="value_error", loc=place, input=None, ctx=error)


def refuse(mistakes: Iterable[InitErrorDetails]) -> None:
    """Raise one ValidationError that lists all mistakes, if there are any."""
    found = list(mistakes)
    if found:
        raise ValidationError.from_exception_data("mistakes", found)
