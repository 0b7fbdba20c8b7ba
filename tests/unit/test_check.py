"""`hourglass check`: every kind of file, and with --data a job against its shards."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from hourglass.cli import runs
from hourglass.data.manifest import save_manifest, scan
from hourglass.errors import DataError, SpecError

REPOSITORY = Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of 60 rows: a vector of 12, numbers, an id, and what is no number."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(2):
        flat = pa.array(RANDOM.normal(size=60 * 12).astype(np.float32))
        table = {
            "image": pa.FixedSizeListArray.from_arrays(flat, 12),
            "id": np.arange(60) + 60 * number,
            "x": RANDOM.normal(size=60),
            "y": RANDOM.normal(size=60),
            "word": ["a"] * 60,
        }
        path = folder / f"part-{number}.parquet"
        pq.write_table(pa.table(table), path, write_page_checksum=True)
    return folder


@pytest.fixture
def check(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`check(tree, *overrides)` writes job.yaml, checks it with --data, and returns what it printed."""
    monkeypatch.setenv("HOURGLASS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(tree: dict[str, Any], *overrides: str, data: bool = True) -> str:
        Path("job.yaml").write_text(yaml.safe_dump(tree))
        runs.check("job.yaml", list(overrides), data)
        printed: str = capsys.readouterr().out
        assert not ray.is_initialized()
        return printed

    return run


def train(shards: Path, **data: Any) -> dict[str, Any]:
    features = {"features": {"vector": "image"}}
    return {
        "kind": "train",
        "data": {"uri": str(shards), **features, **data},
        "model": {"network": {"kind": "dense", "widths": [2]}},
    }


def refusal(check: Any, *args: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        check(*args)
    return str(caught.value).splitlines()


def test_serve_files_are_checked(check: Any) -> None:
    tree = yaml.safe_load((REPOSITORY / "serve" / "local.yaml").read_text())
    resolved = yaml.safe_load(check(tree, "applications.0.args.replicas=2", data=False))
    assert resolved["applications"][0]["args"]["replicas"] == 2
    assert resolved["applications"][0]["args"]["limits"]["max_rows"] == 4096
    with pytest.raises(SpecError) as caught:
        check(tree | {"proxy_location": "HeadOny", "application": []}, data=False)
    assert [line.split("job.yaml:")[1] for line in str(caught.value).splitlines()] == [
        " 2 mistakes",
        "19: proxy_location: found 'HeadOny', did you mean 'HeadOnly'? Allowed: 'HeadOnly' or "
        "'EveryNode'",
        "1: application: unknown field, did you mean 'applications'? Allowed: applications, "
        "controller_options, http_options, proxy_location",
    ]
    with pytest.raises(SpecError, match="a serve file has no shards to check; remove --data"):
        check(tree)


def test_fields_of_a_branch_are_reported(check: Any) -> None:
    tree = yaml.safe_load((REPOSITORY / "serve" / "local.yaml").read_text())
    tree["applications"][0]["args"]["replicas"] = {"min": 1, "maks": 2}
    with pytest.raises(SpecError, match="replicas.maks: unknown field, did you mean 'max'?"):
        check(tree, data=False)


def test_a_job_that_agrees_with_its_shards_says_what_they_are(check: Any, shards: Path) -> None:
    printed = check(train(shards))
    assert printed.endswith("# 2 shards, 120 rows, 12 features\n")
    assert yaml.safe_load(printed)["data"]["uri"] == str(shards)
    Path("base.yaml").write_text(yaml.safe_dump(train(shards)))
    sweep = {"kind": "tune", "base": "base.yaml", "space": {"train.seed": {"grid": [1, 2]}}}
    assert check(sweep).endswith("# 2 shards, 120 rows, 12 features\n")


def test_all_mismatches_are_reported_at_once(check: Any, shards: Path) -> None:
    pinned, _ = scan(str(shards / "part-0.parquet"))
    save_manifest("pinned.json", pinned)
    features = {"columns": ["x", "z*"], "exclude": ["yy"]}
    tree = train(shards, features=features, manifest="pinned.json")
    first = f"  {shards}/part-0.parquet: features"
    columns = "Columns: image, id, x, y, word"
    expected = [
        "job.yaml: 3 mistakes with respect to the shards",
        "  the data differs from the manifest pinned.json:",
        f"    {shards}/part-1.parquet: not in the manifest",
        f"{first}.columns: 'z*' matches no column. {columns}",
        f"{first}.exclude: 'yy' matches no column, did you mean 'y'? {columns}",
    ]
    assert refusal(check, tree) == expected
    Path("base.yaml").write_text(yaml.safe_dump(tree))
    sweep = {"kind": "tune", "base": "base.yaml", "space": {"train.seed": {"grid": [1, 2]}}}
    assert refusal(check, sweep) == expected
    tree = train(shards)
    tree["model"]["network"] = {"kind": "lstm", "shape": [5, 2], "hidden": 3, "code": 2}
    (about_width,) = refusal(check, tree)[1:]
    assert about_width.startswith("  model.network: ")
    assert "12" in about_width


def test_unlikely_features_are_reported(check: Any, shards: Path) -> None:
    tree = train(shards, features={"columns": ["*"], "exclude": ["image", "word"]})
    with pytest.warns(UserWarning, match="probably not features") as caught:
        check(tree)
    assert str(caught[0].message) == (
        "features.columns: of 120 rows, a glob chose columns that are probably not features: "
        "'id' (near-unique whole numbers, as ids are); to exclude them: "
        '`exclude: ["id"]`'
    )
    with warnings.catch_warnings(action="error", category=UserWarning):
        check(tree, "data.features.columns=[id, x]", "data.features.exclude=[]")


def score(shards: Path, model: Path) -> dict[str, Any]:
    return {"kind": "score", "model": str(model), "uri": str(shards), "output": "scored"}


def test_a_model_is_held_against_the_shards(
    check: Any, shards: Path, tiny_artifact: Path, save_artifact: Any, tmp_path: Path
) -> None:
    job = score(shards, tiny_artifact)
    assert check(job | {"passthrough": ["id"]}).endswith("# 2 shards, 120 rows, 12 features\n")
    save_artifact(tmp_path / "narrow", of=RANDOM.normal(size=(300, 5)).astype(np.float32))
    job |= {"output": f"{shards}/out", "passthrough": ["wrod", "score"], "model": "narrow"}
    first, columns = f"  {shards}/part-0.parquet: ", "Columns: image, id, x, y, word"
    assert refusal(check, job) == [
        "job.yaml: 5 mistakes with respect to the shards",
        f"  output: {shards}/out lies in {shards}, whose files are the rows to score; choose a "
        "folder elsewhere",
        "  passthrough: the output has a column 'score' of its own; names taken: code, hash, "
        "is_anomaly, model, model_digest, model_version, row, row_group, score, shard",
        f"{first}column 'image' holds lists of 12 numbers, the model needs 5",
        f"{first}no column 'wrod', did you mean 'word'? {columns}",
        f"{first}no column 'score'. {columns}",
    ]
    job = score(shards, tmp_path / "nowhere") | {"passthrough": ["wrod"]}
    found = refusal(check, job)
    assert found[0] == "job.yaml: 2 mistakes with respect to the shards"
    assert found[1].startswith(f"  {tmp_path}/nowhere: no artifact there")
    assert found[2].startswith(f"{first}no column 'wrod'")


def test_without_data_no_shard_is_opened(check: Any, tmp_path: Path) -> None:
    tree = train(tmp_path / "nowhere")
    assert "# " not in check(tree, data=False)
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        check(tree)
