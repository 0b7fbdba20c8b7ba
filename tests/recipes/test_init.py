"""`hourglass init`: every recipe as a file that needs nothing of the repository."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner, Result

from hourglass import cli, recipes
from hourglass.data.demo import write_digits
from hourglass.errors import DataError, SpecError

EVERY = [(kind, name) for kind in recipes.FILES for name in recipes.names(kind)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def hourglass(*args: str) -> Result:
    return CliRunner().invoke(cli.app, args)


def written(file: str) -> tuple[Any, Any]:
    """What is in a file, and the schema that its first line names."""
    text = Path(file).read_text()
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert found is not None
    schema = Path(file).parent / found[1]
    return yaml.safe_load(text), json.loads(schema.read_text())


def test_every_shipped_file_is_a_recipe() -> None:
    root = Path(__file__).parents[2]
    shipped = {
        p for where in ("jobs", "tune_spaces", "serve") for p in root.glob(f"{where}/**/*.*")
    }
    found = [recipes.find(kind, name).resolve() for kind, name in EVERY]
    assert sorted(found) == sorted(shipped)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_recipe_passes_check_and_its_schema(kind: str, name: str) -> None:
    made = hourglass("init", kind, "a/folder/mine.yaml", "--recipe", name)
    assert made.exit_code == 0, made.exception
    assert sorted(path.name for path in Path("a/folder").iterdir()) == sorted(
        ["mine.yaml", f"{kind}.schema.json"]
    )
    checked = hourglass("check", "a/folder/mine.yaml")
    assert checked.exit_code == 0, checked.exception
    tree, schema = written("a/folder/mine.yaml")
    jsonschema.validate(tree, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree | {"unknown": 1}, schema)


@pytest.mark.parametrize("kind", ["train", "tune"])
def test_the_default_is_explained_and_fits_the_rows_of_the_demo(kind: str) -> None:
    assert hourglass("init", kind).output == (
        f"wrote {kind}.yaml and {kind}.schema.json; `hourglass check {kind}.yaml` validates it\n"
    )
    assert Path(f"{kind}.yaml").read_text().count("  # ") >= 10
    write_digits(".hourglass/demo/digits")
    checked = hourglass("check", f"{kind}.yaml", "--data")
    assert checked.output.splitlines()[-1] == "# 4 shards, 1797 rows, 64 features"


def test_the_default_is_a_train_job() -> None:
    assert hourglass("init").exit_code == 0
    assert written("train.yaml")[0]["kind"] == "train"


def test_an_existing_file_is_replaced_only_with_force() -> None:
    Path("train.yaml").write_text("mine")
    refused = hourglass("init")
    assert isinstance(refused.exception, DataError)
    assert str(refused.exception) == (
        "train.yaml: exists; choose another file, or replace it with --force"
    )
    assert Path("train.yaml").read_text() == "mine"
    assert not Path("train.schema.json").exists()
    assert hourglass("init", "--force").exit_code == 0
    assert written("train.yaml")[0]["name"] == "digits"


def test_a_file_that_is_no_schema_is_kept() -> None:
    Path("train.schema.json").write_text("mine")
    refused = hourglass("init", "--force")
    assert "train.schema.json: exists and is not a JSON Schema" in str(refused.exception)
    assert Path("train.schema.json").read_text() == "mine"
    assert not Path("train.yaml").exists()


def test_an_unknown_recipe_names_the_nearest() -> None:
    unknown = hourglass("init", "score", "--recipe", "mnits")
    assert isinstance(unknown.exception, SpecError)
    assert str(unknown.exception) == (
        "--recipe mnits: no score recipe of this name, did you mean 'mnist'? Recipes: digits, mnist"
    )


@pytest.mark.parametrize("kind", recipes.FILES)
def test_the_list_has_every_recipe_with_its_purpose(kind: recipes.Kind) -> None:
    lines = hourglass("init", kind, "--list").output.splitlines()
    assert [line.split()[0] for line in lines] == recipes.names(kind)
    assert min(len(line.split(maxsplit=1)[1]) for line in lines) >= 10
    assert list(Path().iterdir()) == []
