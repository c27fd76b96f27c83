"""Processes that Shoal starts, and the standard streams of the processes that it runs in.

A process that answers the one that started it does so through a pipe of its own: nothing that a library prints gets
into it. What a process prints may be lost, where nobody reads it or the disk is full; that ends no work.
"""

import atexit
import contextlib
import gc
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start_answering(
    arguments: Sequence[str], stderr: int = subprocess.DEVNULL, **options: Any
) -> tuple["subprocess.Popen[str]", TextIO]:
    """Start Python; return the process and what it writes to `open_answers`.

    Args:
        arguments: of the interpreter; the number of the pipe follows them.
        options: of `Popen`.
    """
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, *arguments, str(write)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
            pass_fds=(write,),
            **options,
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    return process, os.fdopen(read)


def open_answers(number: str) -> TextIO:
    """Return, in a process that `start_answering` started, the pipe of the number that it received last.

    The process will end without a search for garbage, which takes seconds among the objects of torch and pandas.
    """
    atexit.register(gc.freeze)
    os.set_inheritable(int(number), False)
    return os.fdopen(int(number), "w")


def began_ms() -> int:
    """Return when this process began, in Unix milliseconds."""
    import psutil

    return int(psutil.Process().create_time() * 1000)


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the signals that ask to stop: a process that is started meanwhile never receives them.

    For a process whose signal is the end of its pipe. `ray job stop` and a terminal that is closed send the others to
    the driver and to all that it has started.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def no_garbage_search() -> Iterator[None]:
    """Make objects by the thousand, none of which refers to itself, without a search for garbage among them.

    Python searches for garbage each time some hundreds of objects were made, now and then among all that torch, pandas
    and Ray have made, which takes 0.3 s.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _LossyFile(io.FileIO):
    """A file that drops what it cannot write: to a pipe that was closed, a full disk, a terminal that is gone."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            written = super().write(data)
            if written is not None:
                return written
        return memoryview(data).nbytes


def lossy(stream: TextIO | None) -> TextIO:
    """Return a stream to where another one writes, which drops what cannot be written."""
    if stream is None:  # the process was started without it
        return open(os.devnull, "w")
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    try:
        raw = _LossyFile(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError):  # it is in memory, or closed
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=getattr(stream, "line_buffering", False),
        write_through=getattr(stream, "write_through", False),
    )


@contextlib.contextmanager
def lossy_streams() -> Iterator[None]:
    """Let no `print` fail; afterwards the streams are as they were."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lossy(sys.stdout), lossy(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
