"""MkDocs hook: pages that are generated from the code, so that they cannot fall behind it.

The CLI reference comes from the command line itself, the field reference from docs/schema/, and
the example pages from the executed notebooks in docs/examples/.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent
ROOT_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
FIELD_PAGES = {
    "train": "Train job",
    "tune": "Sweep",
    "score": "Score job",
    "serve": "Serve file",
}
Schema = dict[str, Any]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those in docs/."""

    def add(path: str, content: str | bytes) -> None:
        files.append(File.generated(config, path, content=content))

    for page, source in ROOT_PAGES.items():
        add(page, (DOCS.parent / source).read_text().replace("](docs/", "]("))
    add("reference/cli.md", command_page())
    for kind, title in FIELD_PAGES.items():
        add(
            f"reference/{kind}.md",
            Fields(json.loads(schema_path(kind).read_text())).page(title, kind),
        )
    for notebook in sorted((DOCS / "examples").glob("*.ipynb")):
        text, pictures = notebook_page(notebook)
        add(f"examples/{notebook.stem}.md", text)
        for name, picture in pictures.items():
            add(f"examples/{name}", picture)
    return files


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that loads anything from another host: the site must work without a network."""
    loaded = re.findall(
        r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^\s>]+", output
    )
    if loaded:
        raise PluginError(f"{page.file.src_uri}: loads from another host: {loaded}")
    return output


def schema_path(kind: str) -> Path:
    """The JSON Schema of a kind of file, as `hourglass schema` wrote it."""
    return DOCS / "schema" / f"{kind}.json"


# -- command line ------------------------------------------------------------------------------


def command_page() -> str:
    """Every command with its arguments and options."""
    import typer

    from hourglass.cli import app

    parts = [
        "# Command line",
        "Every command prints this information with `--help`. Exit codes: 0 for success, 1 for a "
        "failure, 2 for something you can correct (a wrong option, field or file), and 128 + N for "
        "signal N (130 after Ctrl-C). `hourglass --install-completion` adds completion to your shell.",
    ]
    parts += command_sections(typer.main.get_command(app), "hourglass")
    return "\n\n".join(parts) + "\n"


def command_sections(command: Any, name: str) -> list[str]:
    """The sections of a command and of the commands below it."""
    import typer

    below = getattr(command, "commands", {})
    parts = [f"## {name if ' ' in name else 'Global options'}"]
    parts.append((command.help or "").strip())
    if not below:
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = [p.metavar or p.name.upper() for p in arguments]
        usage = [
            each if p.required else f"[{each}]" for each, p in zip(usage, arguments, strict=True)
        ]
        parts.append(f"```text\n{' '.join([name, '[OPTIONS]', *usage])}\n```")
    records = [
        p.get_help_record(typer.Context(command)) for p in command.params if p.name != "help"
    ]
    rows = [
        (
            f"`{re.sub(' <str>| range(?=>)', '', names)}`",
            *re.fullmatch(r"(.*?)(?: {2}\[(.*)\])?", " ".join(text.split("\n"))).groups(""),
        )
        for names, text in filter(None, records)
    ]
    if rows:
        parts.append(table(("argument or option", "meaning", "default and range"), rows))
    for child in below:
        parts += command_sections(below[child], f"{name} {child}")
    return parts


# -- fields of YAML files ----------------------------------------------------------------------


class Fields:
    """The fields of one kind of file, by their path, from its JSON Schema."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.definitions: dict[str, Schema] = schema.get("$defs", {})
        self.parts: list[str] = []

    def page(self, title: str, kind: str) -> str:
        """The page: one section for each mapping, one table for each kind of it."""
        self.parts = [
            f"# {title}",
            f"{self.schema.get('description', '')} `hourglass init {kind}` writes a commented "
            "file with a JSON Schema next to it, so that your editor completes and validates it. "
            "`hourglass check FILE` validates the file and prints every field.",
        ]
        self.sections(self.fields("", self.schema))
        return "\n\n".join(self.parts) + "\n"

    def fields(self, path: str, schema: Schema) -> list[tuple[str, list[Schema]]]:
        """Add the table of a mapping's fields; return the mappings in it, by path."""
        inner = []
        rows = []
        for name, field in schema.get("properties", {}).items():
            below = f"{path}.{name}" if path else name
            found = self.mappings(field)
            if any(each.get("title") == "TrainJob" for each in found):
                description = f"{field.get('description', '')} [Fields of a train job](train.md)."
                found = []
            else:
                description = field.get("description", "")
            label = f"[`{name}`](#{anchor(below)})" if found else f"`{name}`"
            rows.append(
                (label, self.type_of(field), self.default(name, field, schema), description)
            )
            if found:
                inner.append((below, found))
        self.parts.append(
            table(("field", "type", "default", "meaning"), rows) if rows else "It has no fields."
        )
        return inner

    def sections(self, inner: list[tuple[str, list[Schema]]]) -> None:
        """Add a section for each mapping, and those of the mappings in it."""
        for below, found in inner:
            self.parts.append(f"## `{below}` {{ #{anchor(below)} }}")
            deeper: list[tuple[str, list[Schema]]] = []
            for each in found:
                kind = each.get("properties", {}).get("kind", {}).get("const")
                if kind:
                    self.parts.append(f"### `kind: {kind}` {{ #{anchor(below)}-{anchor(kind)} }}")
                if each.get("description"):
                    self.parts.append(each["description"])
                deeper += self.fields(below, each)
            self.sections(deeper)

    def mappings(self, field: Schema) -> list[Schema]:
        """The kinds of mapping that a field, its items or its values may be."""
        if "$ref" in field:
            return [self.definitions[field["$ref"].rpartition("/")[2]]]
        if isinstance(field.get("additionalProperties"), dict):
            return self.mappings(field["additionalProperties"])
        inner = [*field.get("anyOf", []), *field.get("oneOf", [])]
        inner += [field["items"]] if "items" in field else []
        found = [each for option in inner for each in self.mappings(option)]
        return [each for index, each in enumerate(found) if each not in found[:index]]

    def type_of(self, field: Schema) -> str:
        """The type in words, with its bounds."""
        options = field.get("anyOf") or field.get("oneOf")
        if options:
            kinds = [option for option in options if option.get("type") != "null"]
            return " or ".join(dict.fromkeys(self.type_of(option) for option in kinds))
        if "$ref" in field or isinstance(field.get("additionalProperties"), dict):
            return "mapping"
        if "const" in field:
            return f"`{field['const']}`"
        if "enum" in field:
            return ", ".join(f"`{value}`" for value in field["enum"])
        kind = field.get("type", "any")
        if kind == "array":
            items = field.get("items") or {}
            return f"list of {self.type_of(items)}" if items else "list"
        bounds = [
            f"{sign} {round(field[name], 6)}".removesuffix(".0")
            for name, sign in (
                ("exclusiveMinimum", ">"),
                ("minimum", ">="),
                ("exclusiveMaximum", "<"),
                ("maximum", "<="),
            )
            if name in field
        ]
        return " ".join([kind, ", ".join(bounds)]).strip()

    def default(self, name: str, field: Schema, schema: Schema) -> str:
        """The default as YAML; a mapping's defaults stand in its own section."""
        if name in schema.get("required", []):
            return "required"
        value = field.get("default")
        if isinstance(value, dict):
            return f"`kind: {value['kind']}`" if "kind" in value else "see its fields"
        return "" if value is None else f"`{json.dumps(value)}`".replace('"', "")


def anchor(path: str) -> str:
    """The fragment of a section."""
    return path.replace(".", "-").replace("_", "-")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


# -- notebooks ---------------------------------------------------------------------------------


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Output of the cell above]({name})")
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            else:
                text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
                parts.append(f"```text\n{text}\n```")
    parts.insert(1, f"[Download this notebook]({path.name}){{ download }}")
    return "\n\n".join(parts) + "\n", pictures
