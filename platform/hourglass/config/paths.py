"""Dotted paths in a file's tree of mappings and lists: look up, set, override."""

import copy
from typing import Any

import yaml

from hourglass.config import errors
from hourglass.errors import SpecError


def set_field(tree: Any, override: str) -> errors.Steps:
    """Put the override into `tree` and return its path. Raises SpecError."""
    path, equals, value = override.partition("=")
    if not equals or not all(path.split(".")):
        raise SpecError(f"--set {override}: write it as a.b=value, for example train.epochs=20")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise SpecError(f"--set {override}: the value is not YAML") from None
    return put(tree, path, parsed, f"--set {override}")


def put(tree: Any, path: str, value: Any, where: str) -> errors.Steps:
    """Put `value` at the dotted path, a list's items by index. Raises SpecError saying `where`."""
    steps = path.split(".")
    keys: list[str | int] = []
    for step in steps:
        if not isinstance(tree, dict | list):
            raise SpecError(f"{where}: '{keys[-1]}' is a single value, nothing lies below it")
        place: Any = tree  # a mapping by name, a list by index
        key = _key(tree, step, where)
        keys.append(key)
        if len(keys) == len(steps):
            place[key] = value
            break
        below = tree.get(key) if isinstance(tree, dict) else place[key]
        place[key] = {} if below is None else copy.copy(below)  # a YAML alias stays as it was
        tree = place[key]
    return tuple(keys)


def _key(tree: dict[str, Any] | list[Any], step: str, where: str) -> str | int:
    if isinstance(tree, dict):
        return step
    if not step.isdecimal() or int(step) >= len(tree):
        raise SpecError(f"{where}: '{step}' is not an index of a list of {len(tree)} (from 0)")
    return int(step)


def field_at(tree: Any, path: str) -> Any:
    """What a tree says at the dotted path; None where it says nothing."""
    for step in path.split("."):
        if isinstance(tree, list) and step.isdecimal() and int(step) < len(tree):
            tree = tree[int(step)]
        elif isinstance(tree, dict) and step in tree:
            tree = tree[step]
        else:
            return None
    return tree


def below(path: str, above: str) -> bool:
    """True when `path` is `above` or a field of it."""
    return f"{path}.".startswith(f"{above}.")
