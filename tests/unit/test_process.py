"""Signals raise where they may: at once, or at the end of what must not be cut short."""

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from hourglass.process import (
    Terminated,
    deferred,
    interrupt_main,
    native_stderr_aside,
    raise_on_sigterm,
)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Python's own while a test runs; pytest's after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_ends_a_process_as_ctrl_c_does() -> None:
    raise_on_sigterm()
    with pytest.raises(KeyboardInterrupt) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.type is Terminated


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_deferred_signal_raises_when_the_block_has_ended(number: signal.Signals) -> None:
    raise_on_sigterm()
    done: list[str] = []

    def whole() -> None:
        with deferred():
            for _ in range(3):
                signal.raise_signal(number)
            done.append("ended")

    with pytest.raises(KeyboardInterrupt) as stop:
        whole()
    assert done == ["ended"]
    assert (stop.type is Terminated) == (number == signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):  # control: without the protection the block is cut short
        _cut(number, done)
    assert done == ["ended"]


def _cut(number: int, done: list[str]) -> None:
    signal.raise_signal(number)
    done.append("ended again")


def test_handlers_that_a_block_installs_are_gone_after_it() -> None:
    """As Ray does, whose handlers end the process from inside."""
    raise_on_sigterm()
    with deferred():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: sys.exit(1))
    with pytest.raises(Terminated):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_the_exit_that_ray_makes_of_sigterm_is_sigterm() -> None:
    def start() -> None:
        with deferred():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
            signal.raise_signal(signal.SIGTERM)

    raise_on_sigterm()
    with pytest.raises(Terminated):
        start()


def test_a_program_that_handles_no_sigterm_keeps_what_the_block_installs() -> None:
    """And its exits are its own."""

    def ends(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with deferred():
        signal.signal(signal.SIGTERM, ends)
    assert signal.getsignal(signal.SIGTERM) is ends
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with pytest.raises(SystemExit), deferred():
        sys.exit(3)


@pytest.mark.parametrize(
    ("ignored", "kind"), [(False, KeyboardInterrupt), (True, Terminated)], ids=["", "in background"]
)
def test_another_thread_interrupts_the_main_one(ignored: bool, kind: type[BaseException]) -> None:
    """Also where that waits, and where a shell had SIGINT ignored."""
    raise_on_sigterm()
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Timer(0.1, interrupt_main).start()
    with pytest.raises(KeyboardInterrupt) as caught:
        threading.Event().wait(60)
    assert type(caught.value) is kind


def test_a_program_that_ignores_both_signals_is_not_interrupted() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    thread = threading.Thread(target=interrupt_main)
    thread.start()
    thread.join()


def test_a_thread_sets_no_handlers() -> None:
    found: list[object] = []

    def work() -> None:
        with deferred():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


def test_native_words_on_stderr_are_aside_and_pythons_are_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        own = os.fdopen(os.dup(2), "w", buffering=1)
        patch.setattr(sys, "stderr", own)
        patch.setattr(sys, "__stderr__", own)
        with native_stderr_aside():
            os.write(2, b"native\n")
            print("python", file=sys.stderr)
        os.write(2, b"native again\n")
        print("python again", file=sys.stderr)
    assert capfd.readouterr().err == "python\nnative again\npython again\n"
