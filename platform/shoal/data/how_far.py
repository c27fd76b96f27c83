"""Says now and then how far reading has come, where it takes long."""

import logging
import time

SAY_EVERY_S = 10.0


class HowFar:
    """Logs a line at most every `SAY_EVERY_S`, and none before the first of these have passed."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger, self._said_s = logger, time.monotonic()

    def __call__(self, words: str, *values: object) -> None:
        """Log words, formatted with values as `logging` does."""
        now_s = time.monotonic()
        if now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            self._logger.info(words, *values)
