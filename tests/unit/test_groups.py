"""Placement groups of trials that are gone are given back, each once, and not before."""

import pytest

from hourglass.tuning import groups
from hourglass.tuning.groups import GONE_S, Groups


def test_what_lost_trials_held_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now, freed = [100.0], []
    monkeypatch.setattr(groups.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(groups, "free", freed.extend)
    ids = [character * 36 for character in "abc"]
    held = Groups()
    for trial, group in zip("123", ids, strict=True):
        held.reserved(trial, group)
    held.ended("1")
    held.ended("none")
    held.give_back()
    assert freed == []  # its controller may still live
    now[0] += GONE_S
    held.ended("2")
    held.give_back()
    held.give_back()
    assert freed == ids[:1]
    held.give_back_all()
    assert sorted(freed) == ids
