"""A region at the bottom of a terminal that is redrawn in place; lines printed meanwhile scroll by above it.

The only module that imports rich. `progress` imports it when a training or a sweep is shown on a terminal, so that
`--help`, `--check` and logs do not pay for rich's import (0.1 s of CPU time).
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

BEST = "  best"


class LiveRegion:
    """Lines redrawn in place by rich. Output that fails ends the display, never the training.

    While it is shown, `sys.stdout` and `sys.stderr` print above it. A stderr that is no terminal stays as
    it is: `2> errors.log` still gets it.
    """

    is_live = True

    def __init__(self, out: TextIO) -> None:
        # soft_wrap: the terminal wraps long lines by itself, so that commands and paths in them can be copied.
        self._console = Console(
            file=out,
            force_terminal=True,
            force_interactive=True,
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
        self._live: Live | None = None
        self._is_broken = False

    @property
    def columns(self) -> int:
        return self._console.width

    def print(self, line: str) -> None:
        """Print a line that stays; one that ends with BEST is highlighted."""
        text = Text(line)
        if line.endswith(BEST):
            text.stylize("bold green", len(line) - len(BEST))
        self._attempt(lambda: self._console.print(text))

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the region by these lines, each cut off at the terminal's edge."""
        self._attempt(lambda: self._draw(Text("\n".join(lines), no_wrap=True, overflow="ellipsis")))

    def freeze(self) -> None:
        """Leave the region as it is, as lines that stay; the next `draw` begins a new one."""
        self._attempt(self._stop)

    def _draw(self, text: Text) -> None:
        if self._live is None:
            # No auto_refresh: only `draw` changes the text, so rich's refresh thread would be idle work.
            self._live = Live(console=self._console, auto_refresh=False, redirect_stderr=sys.stderr.isatty())
            self._live.start()
        self._live.update(text, refresh=True)

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live:
            live.stop()

    def _attempt(self, write: Callable[[], None]) -> None:
        if self._is_broken:
            return
        try:
            write()
        except (OSError, ValueError, SystemExit):  # rich answers a broken pipe by SystemExit
            self._is_broken = True
            with contextlib.suppress(OSError, ValueError, SystemExit):
                self._stop()  # restores sys.stdout and sys.stderr
