"""Which processes are the head's: told by pid and start, whatever happens to the clock."""

import os

import psutil
import pytest

from hourglass.cluster import start
from hourglass.cluster.start import Daemon


def test_a_daemon_is_found_again_when_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    me = psutil.Process()
    mine = Daemon(pid=os.getpid(), started=start._since_boot(me), name=me.name())
    assert start._process(mine) == me
    create_time, boot_time = psutil.Process.create_time, psutil.boot_time
    for step in (1.0, -3600.0):  # both move with the clock
        monkeypatch.setattr(psutil.Process, "create_time", lambda p, s=step: create_time(p) + s)
        monkeypatch.setattr(psutil, "boot_time", lambda s=step: boot_time() + s)
        assert start._process(mine) is not None
        monkeypatch.undo()


def test_another_process_with_the_pid_is_not_the_daemon() -> None:
    me = psutil.Process()
    earlier = Daemon(pid=os.getpid(), started=start._since_boot(me) - 5.0, name=me.name())
    assert start._process(earlier) is None
    assert start._process(Daemon(pid=2**22 + 1, started=0.0, name="gone")) is None
