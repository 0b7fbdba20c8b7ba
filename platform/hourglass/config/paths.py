"""Dotted paths in the mappings and lists of a file: get, set, override."""

import copy
from typing import Any

import yaml

from hourglass.config import errors
from hourglass.errors import SpecError


def set_field(tree: Any, override: str) -> errors.Steps:
    """Apply the override to `tree` and return its path. Raises SpecError."""
    path, equals, value = override.partition("=")
    if not equals or not all(path.split(".")):
        raise SpecError(f"--set {override}: allowed is a.b=value, for example train.epochs=20")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise SpecError(f"--set {override}: the value is not YAML") from None
    return put(tree, path, parsed, f"--set {override}")


def put(tree: Any, path: str, value: Any, where: str) -> errors.Steps:
    """Set `value` at a dotted path, with list items by index. Raises SpecError naming `where`."""
    steps = path.split(".")
    keys: list[str | int] = []
    for step in steps:
        if not isinstance(tree, dict | list):
            raise SpecError(f"{where}: '{keys[-1]}' is a single value and has no fields")
        place: Any = tree  # indexed by name or number
        key = _key(tree, step, where)
        keys.append(key)
        if len(keys) == len(steps):
            place[key] = value
            break
        below = tree.get(key) if isinstance(tree, dict) else place[key]
        place[key] = (
            {} if below is None else copy.copy(below)
        )  # other uses of a YAML alias keep their value
        tree = place[key]
    return tuple(keys)


def _key(tree: dict[str, Any] | list[Any], step: str, where: str) -> str | int:
    if isinstance(tree, dict):
        return step
    if not step.isdecimal() or int(step) >= len(tree):
        raise SpecError(
            f"{where}: found '{step}', allowed are indexes of a list of {len(tree)} items, from 0"
        )
    return int(step)


def field_at(tree: Any, path: str) -> Any:
    """The value at a dotted path; None if there is none."""
    for step in path.split("."):
        if isinstance(tree, list) and step.isdecimal() and int(step) < len(tree):
            tree = tree[int(step)]
        elif isinstance(tree, dict) and step in tree:
            tree = tree[step]
        else:
            return None
    return tree


def below(path: str, above: str) -> bool:
    """True if `path` is `above` or a field of it."""
    return f"{path}.".startswith(f"{above}.")
