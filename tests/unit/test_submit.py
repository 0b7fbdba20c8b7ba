"""Following a job: its log comes whole, however often the connection breaks."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from hourglass.cluster import submit

LOG = "first\nsecond\nthe last line\n"


class Broken:
    """A client whose connection breaks after the first line, and whose job has ended by then."""

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "first\n"
        raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(status="SUCCEEDED")

    def get_job_logs(self, job: str) -> str:
        return LOG


def test_the_rest_is_printed_of_a_job_that_ended_while_the_connection_was_down(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asyncio.run(submit._print_log(Broken(), "ended"))
    assert capsys.readouterr().out == LOG
