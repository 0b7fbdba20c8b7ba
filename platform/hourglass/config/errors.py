"""Places in files: YAML with line numbers, readable validation errors, and dotted paths.

An error says where, what was found, what is allowed, and the nearest name.
"""

import copy
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from hourglass.errors import SpecError, nearest

Steps = tuple[str | int, ...]
Lines = dict[Steps, int]
"""The line of each field of a file, from 1; `SET` for an overridden field."""
SET = 0
PRESET = "preset"
"""The field that is a shorthand for its siblings."""


def read_yaml(path: str | Path) -> tuple[Any, Lines]:
    """The values and the line of each field. Raises SpecError, also for duplicate keys."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
        lines = (
            dict(_lines(str(path), node, ())) if node is not None and isinstance(tree, dict) else {}
        )
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a folder; pass a YAML file") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise SpecError(f"{path}{line}: {problem}") from None
    except RecursionError:
        raise SpecError(f"{path}: nested too deeply") from None
    except ValueError as error:  # a date such as 2020-13-45
        raise SpecError(f"{path}: {error}; put quotes around text") from None
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    if not isinstance(tree, dict):
        raise SpecError(
            f"{path}: not a mapping; a job file starts with `kind: train`, `kind: score` or "
            "`kind: tune`"
        )
    return tree, lines


def _lines(path: str, node: yaml.Node, steps: Steps) -> Iterator[tuple[Steps, int]]:
    yield steps, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise SpecError(f"{path}:{line}: '{key.value}' is given twice; keep one")
            seen.add(key.value)
            yield from _lines(path, value, (*steps, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _lines(path, value, (*steps, index))


@functools.cache
def _schema(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The JSON Schema of a file, cached because a sweep needs it often and it is slow to build."""
    return adapter.json_schema()


def explain(where: str, error: ValidationError, adapter: TypeAdapter[Any], lines: Lines) -> str:
    """All mistakes, one per line: file:line, field, found and allowed, nearest name."""
    schema = _schema(adapter)
    mistakes: dict[str, list[str]] = {}
    for steps, item in _items(error, schema):
        field = ".".join(str(step) for step in steps)
        place = f"  {where}{_line(steps, lines)}: {field + ': ' if field else ''}"
        messages = mistakes.setdefault(place, [])
        found, message = f"found {_shown(item)}", _message(item, steps, schema)
        if messages and messages[-1].startswith(found):  # another branch of the same union
            messages[-1] += f"; or {message.removeprefix(found).lstrip(',;. ')}"
        elif message not in messages:
            messages.append(message)
    every = [place + message for place, messages in mistakes.items() for message in messages]
    count = "1 mistake" if len(every) == 1 else f"{len(every)} mistakes"
    return "\n".join([f"{where}: {count}", *every])


def _items(error: ValidationError, schema: dict[str, Any]) -> Iterator[tuple[Steps, Any]]:
    """Each mistake with its field, without missing fields that a misspelt preset would provide."""
    found = [(_without_tags(i["loc"], schema), i) for i in error.errors(include_url=False)]
    mistaken = {steps for steps, _ in found}
    for steps, item in found:
        if item["type"] != "missing" or (*steps[:-1], PRESET) not in mistaken:
            yield steps, item


def _line(steps: Steps, lines: Lines) -> str:
    while steps and steps not in lines:
        steps = steps[:-1]
    line = lines.get(steps)
    if line == SET:
        return " (--set)"
    return f":{line}" if line else ""


def _shown(item: Any) -> str:
    found = repr(item.get("input"))
    return found if len(found) <= 60 else found[:57] + "..."


def _message(item: Any, steps: Steps, schema: dict[str, Any]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    found = _shown(item)
    if kind == "extra_forbidden":
        allowed = sorted(_fields_at(steps[:-1], item["loc"][:-1], schema))
        return f"unknown field{nearest(str(steps[-1]), allowed)} Allowed: {', '.join(allowed)}"
    if kind == "missing":
        return "required field is missing"
    if kind == "union_tag_invalid":
        tags = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
        return f"found kind '{context['tag']}'{nearest(context['tag'], tags)} Allowed: {', '.join(tags)}"
    if kind == "union_tag_not_found":
        return "`kind` is missing"
    if kind == "literal_error":
        near = nearest(
            str(item["input"]), [word.strip("'") for word in _literals(context["expected"])]
        )
        return f"found {found}{near} Allowed: {context['expected']}"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"found {found}; input should be a mapping of fields"
    if kind == "tuple_type":
        return f"found {found}; input should be a list"
    return f"found {found}; {item['msg'][:1].lower()}{item['msg'][1:]}"


def _literals(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").split(", ")


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node


def _descend(
    node: dict[str, Any], step: str | int, schema: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The JSON Schema at `step`, and whether `step` is a field (False: the tag of a union)."""
    node = _resolve(node, schema)
    mapping = node.get("discriminator", {}).get("mapping", {})
    if step in mapping:
        return {"$ref": mapping[step]}, False
    if isinstance(step, int):
        return node.get("items", _any_with(node, "items", schema).get("items", {})), True
    if step in node.get("properties", {}):
        return node["properties"][step], True
    holder = _any_with(node, "properties", schema)
    if step in holder.get("properties", {}):
        return holder["properties"][step], True
    if isinstance(node.get("additionalProperties"), dict):
        return node["additionalProperties"], True
    names = re.findall(
        r"\w+", step
    )  # pydantic's names of branches: Autoscaling, function-after[f(), Limits]
    branches = (b for b in node.get("anyOf", []) if b.get("$ref", "").rpartition("/")[2] in names)
    return next(branches, {}), not _is_branch(node, step)


def _is_branch(node: dict[str, Any], step: str) -> bool:
    """True if `step` is the name of a branch of a union, which pydantic adds to the path."""
    branches = [branch for branch in node.get("anyOf", []) if branch.get("type") != "null"]
    return (
        len(branches) > 1 or "prefixItems" in node or step.startswith(("function-", "constrained-"))
    )


def _any_with(node: dict[str, Any], key: str, schema: dict[str, Any]) -> dict[str, Any]:
    for branch in node.get("anyOf", []):
        resolved = _resolve(branch, schema)
        if key in resolved:
            return resolved
    return {}


def _without_tags(loc: Steps, schema: dict[str, Any]) -> Steps:
    node, steps = schema, []
    for step in loc:
        node, is_field = _descend(node, step, schema)
        if is_field and step != "[key]":  # pydantic's marker of a mistake in a key
            steps.append(step)
    return tuple(steps)


def unknown_step(steps: Sequence[str], adapter: TypeAdapter[Any]) -> str | None:
    """A message about the first step that is not a field of any branch; None if all are."""
    schema = _schema(adapter)
    nodes = list(_branches(schema, schema))
    for depth, step in enumerate(steps):
        fields = [node["properties"] for node in nodes if "properties" in node]
        below = _below(nodes, step)
        if not below:
            allowed = sorted({name for known in fields for name in known})
            known_fields = f" Allowed: {', '.join(allowed)}" if allowed else " It has no fields"
            where = ".".join(steps[:depth])
            return f"'{step}' is not a field of {where}{nearest(step, allowed)}{known_fields}"
        nodes = [branch for node in below for branch in _branches(node, schema)]
    return None


def literals_at(steps: Sequence[str], adapter: TypeAdapter[Any]) -> list[str] | None:
    """The literals that the field accepts in any branch; None if it accepts other values."""
    schema = _schema(adapter)
    nodes = list(_branches(schema, schema))
    for step in steps:
        nodes = [branch for node in _below(nodes, step) for branch in _branches(node, schema)]
    words: list[str] = []
    for node in nodes:
        if "const" not in node and "enum" not in node and node.get("type") != "null":
            return None
        words += node.get("enum", [node["const"]] if "const" in node else [])
    return list(dict.fromkeys(words)) or None


def _below(nodes: Sequence[dict[str, Any]], step: str) -> list[dict[str, Any]]:
    """The children of these nodes at `step`, a field or an index."""
    lists = [node["items"] for node in nodes if "items" in node and step.isdecimal()]
    fields = [node["properties"] for node in nodes if "properties" in node]
    return lists + [known[step] for known in fields if step in known]


def _branches(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The node, or each branch of its union."""
    node = _resolve(node, schema)
    unions = [*node.get("anyOf", []), *node.get("oneOf", [])]
    if not unions:
        yield node
    for branch in unions:
        yield from _branches(branch, schema)


def _fields_at(steps: Steps, loc: Steps, schema: dict[str, Any]) -> list[str]:
    node = schema
    for step in loc:
        node, _ = _descend(node, step, schema)
    node = _resolve(node, schema)
    fields = node.get("properties") or _any_with(node, "properties", schema).get("properties", {})
    return list(fields)


def set_field(tree: Any, override: str) -> Steps:
    """Apply the override to `tree` and return its path. Raises SpecError."""
    path, equals, value = override.partition("=")
    if not equals or not all(path.split(".")):
        raise SpecError(f"--set {override}: allowed is a.b=value, for example train.epochs=20")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise SpecError(f"--set {override}: the value is not YAML") from None
    return put(tree, path, parsed, f"--set {override}")


def put(tree: Any, path: str, value: Any, where: str) -> Steps:
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
