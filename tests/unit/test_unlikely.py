"""Columns that are probably not features are named wherever a glob, or a whole table, chose them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hourglass import Autoencoder
from hourglass.data.inspect import inspect, lines
from hourglass.data.unlikely import KEPT, Sample, advice, index_columns, why

RANDOM = np.random.default_rng(0)
IDS = RANDOM.permutation(4000) * 37 + 1_700_000_000_000
COLUMNS: dict[str, tuple[np.ndarray, bool]] = {
    "running": (np.arange(4000), True),
    "shuffled": (IDS, True),
    "beyond 2^53": (IDS + 2**60, True),
    "unsigned": (np.uint64(2**64 - 1) - np.arange(4000, dtype=np.uint64), True),
    "as floats with gaps": (np.where(np.arange(4000) % 9 == 0, np.nan, IDS), True),
    "a few twice": (np.where(np.arange(4000) % 50 == 0, IDS[0], IDS), True),
    "a quarter alike": (np.where(np.arange(4000) % 4 == 0, IDS[0], IDS), False),
    "fractions": (RANDOM.normal(size=4000), False),
    "counts": (RANDOM.poisson(30, 4000), False),
    "flags": (np.arange(4000) % 2, False),
    "constant": (np.full(4000, 7), False),
    "floats beyond 2^53": (RANDOM.normal(size=4000) * 1e30, False),
    "few rows": (np.arange(99), False),
    "nothing": (np.full(4000, np.nan), False),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_near_unique_whole_numbers_are_told_from_others(name: str) -> None:
    values, near_unique = COLUMNS[name]
    assert Sample.of(values).near_unique is near_unique


def test_rows_that_repeat_elsewhere_are_not_unique() -> None:
    """Each part has every value once, so a look at parts alone would be wrong."""
    part = Sample.of(np.arange(2000))
    assert part.near_unique
    assert not part.merge(part).near_unique
    assert part.merge(Sample.of(np.arange(2000, 4000))).near_unique


@given(st.lists(st.integers(0, 4000), max_size=4), st.sampled_from([*COLUMNS]))
def test_any_split_of_the_rows_gives_the_same_sample(cuts: list[int], name: str) -> None:
    values = COLUMNS[name][0]
    parts = [Sample.of(part) for part in np.split(values, sorted(cuts))]
    merged = Sample()
    for part in parts:
        merged = merged.merge(Sample.from_bytes(part.to_bytes()))
    whole = Sample.of(values)
    assert merged.to_bytes() == whole.to_bytes()
    assert len(whole.hashes) <= KEPT


def test_the_index_of_pandas_is_known_by_the_footer_or_by_its_name(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": [1.0, 2.0]}, index=pd.Index([7, 9], name="row"))
    table.to_parquet(tmp_path / "a.parquet")
    assert index_columns(pq.read_schema(tmp_path / "a.parquet")) == {"row"}
    table.rename_axis(None).to_parquet(tmp_path / "b.parquet")
    assert index_columns(pq.read_schema(tmp_path / "b.parquet")) == {"__index_level_0__"}
    bare = pa.schema([("__index_level_0__", pa.int64()), ("row", pa.int64())])
    assert index_columns(bare) == {"__index_level_0__"}
    for odd in (b"{", b"[]", b"{}", b'{"index_columns": 5}', b'{"index_columns": [{}, "gone"]}'):
        assert index_columns(bare.with_metadata({b"pandas": odd})) == {"__index_level_0__"}
    table.reset_index(drop=True).to_parquet(tmp_path / "c.parquet")
    assert index_columns(pq.read_schema(tmp_path / "c.parquet")) == set()


def test_one_sentence_names_all_with_what_to_paste() -> None:
    found = why(
        ["a", "id", "no: 1", "x"], index=["id"], near_unique=["id", "a"], constant=["no: 1"]
    )
    assert advice(found) == (
        "columns that are probably not features: 'a' (near-unique whole numbers, as ids are), "
        "'id' (the index of a table), "
        '\'no: 1\' (constant); to exclude them: `exclude: ["a", "id", "no: 1"]`'
    )
    assert why(["x"], index=["id"], near_unique=[], constant=[]) == {}


FRAME = pd.DataFrame({"id": IDS[:300], "same": 3.0, "x": RANDOM.normal(size=300)})


def test_the_notebook_warns_of_columns_with_names() -> None:
    few: dict[str, Any] = {"widths": [2], "epochs": 1}
    with pytest.warns(UserWarning, match="probably not features") as caught:
        Autoencoder(**few).fit(FRAME)
    assert str(caught[0].message) == (
        "X has columns that are probably not features: 'id' (near-unique whole numbers, as "
        'ids are), \'same\' (constant); to exclude them: X.drop(columns=["id", "same"])'
    )
    with pytest.warns(UserWarning, match="probably not features: 'id'") as caught:
        Autoencoder(constant="drop", **few).fit(FRAME)
    assert "same" not in str(caught[0].message)
    with warnings.catch_warnings(action="error", category=UserWarning):
        Autoencoder(**few).fit(FRAME[["x"]])
        Autoencoder(**few).fit(FRAME.to_numpy())


def test_inspect_says_which_columns_to_leave_out(tmp_path: Path) -> None:
    table = FRAME.assign(word="a", big=IDS[:300] + 2**60).set_index("id")
    table.to_parquet(tmp_path / "a.parquet")
    *_, last = lines(inspect(str(tmp_path), lambda *_: None))
    assert last == (
        "`columns: [\"*\"]` would choose columns that are probably not features: 'same' (constant), "
        "'word' (large_string), 'big' "
        "(near-unique whole numbers, as ids are), 'id' (the index of a table); to exclude them: "
        '`exclude: ["same", "word", "big", "id"]`'
    )
    table[["x"]].reset_index(drop=True).to_parquet(tmp_path / "a.parquet")
    *_, last = lines(inspect(str(tmp_path), lambda *_: None))
    assert last.lstrip().startswith("x  ")
