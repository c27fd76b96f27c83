"""The frame of a job: warnings, signals, one `error:` line, the exit code."""

import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from shoal.config.secrets import mask
from shoal.errors import Interrupted, ShoalError
from shoal.processes import STOP_SIGNALS, lossy_streams
from shoal.storage.failures import storage_error

ENDING_S = 0.2  # for a thread that is about to end


def run(main: Callable[[list[str]], int]) -> int:
    """Call a job's main; a ShoalError becomes one line on stderr and its exit code.

    Where the job prints to may be closed or full meanwhile: that changes neither the work nor the exit code.
    """
    with lossy_streams():
        return _run(main)


def _run(main: Callable[[list[str]], int]) -> int:
    try:
        with warnings_on_stderr():
            return main(sys.argv[1:])
    except (Exception, KeyboardInterrupt) as error:
        text, code = report(error)
        print(text, file=sys.stderr)
        return code


def report(error: BaseException) -> tuple[str, int]:
    """Return what a job prints of the error that ends it, a traceback for one of no known kind, and its exit code."""
    known: BaseException = error
    if isinstance(error, OSError):
        known = storage_error(error) or error
    if isinstance(known, Interrupted):
        return mask(" ".join(str(known).split())), known.exit_code
    if isinstance(known, ShoalError):
        line = f"error: {mask(' '.join(str(known).split()))}"
        is_shown = os.environ.get("SHOAL_TRACEBACK") == "1" and known is error
        return f"{_traceback(error)}\n{line}" if is_shown else line, known.exit_code
    if isinstance(known, KeyboardInterrupt):
        return "interrupted", 130
    return _traceback(error), 1


def _traceback(error: BaseException) -> str:
    return mask("".join(traceback.format_exception(error)))


def leave(code: int) -> NoReturn:
    """End a job's process.

    A thread that was given up, since a server or a store does not answer, would run on while the interpreter ends: its
    next temporary folder changes the registry that weakref's exit function walks through, and a traceback is printed.
    Then the process leaves Ray and ends without the rest.
    """
    own = [thread for thread in threading.enumerate() if thread.name.startswith("shoal-")]
    for thread in own:
        thread.join(ENDING_S if thread.daemon else None)
    if any(thread.is_alive() for thread in own):
        if ray := sys.modules.get("ray"):
            ray.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def on_interrupt(stop: Callable[[str], None]) -> None:
    """Call `stop(signal name)` at the first SIGINT, SIGTERM or SIGHUP; a second SIGINT ends the process at once."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        received.append(number)
        name = signal.Signals(number).name
        stop(name)
        # The stream may be closed, or interrupted in the middle of a write, which must not be entered again.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            print(f"\n{name}: writing a checkpoint, then stopping", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, handle)


@contextlib.contextmanager
def interruptible(stop: Callable[[str], None]) -> Iterator[None]:
    """Call `stop` as `on_interrupt` does; afterwards the handlers are as they were. Only a main thread has handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    on_interrupt(stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Write what the library logs to stderr alone; afterwards its logger is as it was."""
    handler = _StderrHandler()
    handler.setFormatter(_Warning())
    log = logging.getLogger("shoal")
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if os.environ.get("SHOAL_TRACEBACK") == "1" else logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


class _StderrHandler(logging.Handler):
    """Writes to the `sys.stderr` of the moment, which a live display replaces by one that prints above it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class _Warning(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        word = {"WARNING": "warning: ", "ERROR": "error: "}.get(record.levelname, "")
        return f"{word}{mask(record.getMessage())}"
