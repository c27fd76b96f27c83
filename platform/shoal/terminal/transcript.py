"""What a job printed, kept in its run folder: `ray job logs` is gone with the head, and a terminal with its window.

A terminal that shows a redrawn region is left alone: its person has seen it.
"""

import contextlib
import io
import socket
import sys
from collections.abc import Iterator
from typing import TextIO

from shoal.errors import ShoalError
from shoal.runs.locations import this_command
from shoal.storage.failures import storage_error
from shoal.storage.run_folder import OUTPUT, RunFolder
from shoal.terminal.errors import report

MOST = 1_000_000  # characters that are kept, the last ones


class _Copied(io.TextIOBase):
    """A stream whose text is kept as well."""

    def __init__(self, stream: TextIO, kept: list[str]) -> None:
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        self._kept.append(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


@contextlib.contextmanager
def kept_output(folder: RunFolder) -> Iterator[None]:
    """Write what is printed meanwhile, and the error that ends it, to `output/ATTEMPT.txt` of a run folder.

    It is written once, at the end, and by a job that has begun an attempt. Where the storage fails nothing is written.
    """
    if sys.stdout.isatty():
        yield
        return
    kept = [f"{this_command() or 'called from Python'} on {socket.gethostname()}\n"]
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Copied(sys.stdout, kept), _Copied(sys.stderr, kept)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        kept.append(f"{report(error)[0]}\n")
        if storage_error(error) is None:
            _write(folder, kept)
        raise
    else:
        _write(folder, kept)
    finally:
        sys.stdout, sys.stderr = before


def _write(folder: RunFolder, kept: list[str]) -> None:
    if folder.attempt is None:
        return
    text = "".join(kept)
    # A later attempt may have begun meanwhile; and the run has ended as it has, whatever becomes of this file.
    with contextlib.suppress(ShoalError, OSError):
        folder.write(f"{OUTPUT}/{folder.attempt:04d}.txt", text[-MOST:].encode())
