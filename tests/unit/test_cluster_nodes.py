"""Which processes are the head's: told by pid and start, whatever happens to the clock."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from hourglass.cluster import daemons, nodes
from hourglass.cluster.daemons import Daemon
from hourglass.process import free_port
from hourglass.settings import Settings


def test_a_daemon_is_found_again_when_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    me = psutil.Process()
    mine = Daemon(pid=os.getpid(), started=daemons.since_boot(me), name=me.name())
    assert daemons.running(mine) == me
    create_time, boot_time = psutil.Process.create_time, psutil.boot_time
    for step in (1.0, -3600.0):  # both move with the clock
        monkeypatch.setattr(psutil.Process, "create_time", lambda p, s=step: create_time(p) + s)
        monkeypatch.setattr(psutil, "boot_time", lambda s=step: boot_time() + s)
        assert daemons.running(mine) is not None
        monkeypatch.undo()


def test_another_process_with_the_pid_is_not_the_daemon() -> None:
    me = psutil.Process()
    earlier = Daemon(pid=os.getpid(), started=daemons.since_boot(me) - 5.0, name=me.name())
    assert daemons.running(earlier) is None
    assert daemons.running(Daemon(pid=2**22 + 1, started=0.0, name="gone")) is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", [(daemons, "launched"), (nodes, "check_dashboard")])
def test_a_head_that_does_not_come_to_be_leaves_no_process_and_no_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: tuple[Any, str], stop: BaseException
) -> None:
    """Ctrl-C while it starts or comes up, or a full disk: nobody would find what is not recorded."""
    started: list[subprocess.Popen[bytes]] = []
    launches = "import subprocess, time; subprocess.Popen(['sleep', '300']); time.sleep(300)"

    def open_session(*_: Any) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen([sys.executable, "-c", launches], start_new_session=True)
        started.append(process)
        while len(daemons.session(process.pid)) < 2:
            time.sleep(0.01)
        return process

    def fail(*_: Any) -> Any:
        raise stop

    (tmp_path / "r").mkdir()
    monkeypatch.setattr(nodes, "temp_dir", lambda _: tmp_path / "r" / "r")
    monkeypatch.setattr(daemons, "open_session", open_session)
    monkeypatch.setattr(daemons, "launched", lambda *_: ())
    monkeypatch.setattr(*where, fail)
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(type(stop)):
        nodes.start(settings, port=free_port(), dashboard_port=free_port())
    started[0].wait()
    assert daemons.session(started[0].pid) == []
    assert nodes.find(settings) is None
