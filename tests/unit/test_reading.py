"""What Ray Data leaves behind when reading ends early has ended before anybody shuts Ray down."""

import threading

import pytest

from hourglass.data.reading import threads_ended


def started(name: str, until: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=until.wait, args=(20,), name=name, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("name", ["iter_threaded", "StreamingExecutor-dataset_1"])
def test_threads_of_the_block_are_waited_for(name: str) -> None:
    soon, never = threading.Event(), threading.Event()
    earlier = started(name, never)
    with threads_ended():
        other, late = started("Prefetcher", never), started(name, soon)
        threading.Timer(0.3, soon.set).start()
        assert late.is_alive()  # as it would be at the end, but for the waiting
    assert not late.is_alive()
    assert earlier.is_alive()
    assert other.is_alive()
    never.set()
