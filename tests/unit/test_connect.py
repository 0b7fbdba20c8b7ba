"""What a connection to Ray lets onto the screen."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private import worker

from hourglass.cluster import connect

DUMP = (
    "Raylet is terminated. Termination is unexpected. Possible reasons include: (1) SIGKILL by the user "
    "or system OOM killer. Last 20 lines of the Raylet logs:\n    [state-dump]\n    [state-dump]\n"
)
LOST = (
    "The node with node id: f58d9350 and address: 192.0.2.7 and node name: 192.0.2.7 has been marked "
    "dead because the detector has missed too many heartbeats from it. This can happen when a \t(1) "
    "raylet crashes unexpectedly (OOM, etc.)\n\t(2) raylet has lagging heartbeats."
)


def received(*reported: str) -> None:
    """Ray's own thread in a driver, which hears what the head tells."""
    over = threading.Event()
    left = list(reported)

    def poll() -> tuple[None, dict[str, Any] | None]:
        if len(left) == 1:
            over.set()
        return None, {"job_id": None, "error_message": left.pop(0)}

    job = SimpleNamespace(binary=lambda: b"1")
    errors = SimpleNamespace(subscribe=lambda: None, poll=poll)
    worker.listen_error_messages(
        SimpleNamespace(gcs_error_subscriber=errors, current_job_id=job), over
    )


def test_a_lost_machine_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    received(DUMP)
    assert "[state-dump]" in capsys.readouterr().out  # control: what Ray prints
    connect._plain_worker_lines()
    received(DUMP, LOST, DUMP)
    assert capsys.readouterr() == (
        "lost node 192.0.2.7 of the cluster; its work is restarted\n",
        "",
    )
