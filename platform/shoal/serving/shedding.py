"""Load shedding: a burst may fill the queue, and so may clients that wait for their answers; an overload may not.

A queue that lasts adds its length to every answer and helps nobody. What tells overload from a burst is time, as in
CoDel (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012); what tells it from clients that send
their next request after an answer is that more requests come than are answered. By Little's law the last of n requests
is answered after n / (answers per second).
"""

import json
import math
import time
from collections.abc import Callable

from shoal.serving.metrics import Metrics
from shoal.serving.models import Models

WAIT_S, WAIT_BATCHES = 0.007, 2.0  # for which a request may wait under overload: the longer of both
LONG = 3.0  # times that wait: a queue that tells of overload
WINDOW_S, WINDOW_ANSWERS = 0.06, 8  # in which requests and answers are counted, at least
SHEDDING_WINDOW_S = 0.25  # under overload: answers come in batches, and a short window would end it by chance
WINDOWS = 2  # in a row, that are needed to know of overload, or of its end: one may begin in a stall
EXCESS = 1.1  # requests for each answer, above which they are too many
FEWEST = 4
ROUTE = "overload"  # by which refusals are counted: their own were not read


class Shedder:
    """Decides whether a server has too many requests to take one more. All of it runs in the event loop.

    Attributes:
        inside: requests that are read and not answered yet.
        is_shedding: whether the queue is kept short.
    """

    def __init__(
        self, models: Models, metrics: Metrics, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.inside = 0
        self.is_shedding = False
        self._models, self._metrics, self._clock = models, metrics, clock
        self._rate = 0.0  # answers per second
        self._alone_s = 0.0  # the time of a request before the overload, which makes all slower
        self._against = 0  # windows in a row that speak against what is thought
        self._begin_window()

    def refuses(self) -> bool:
        """Count a request; return whether it is one too many."""
        self._offered += 1
        self._end_window()
        if self.inside < LONG * self.lasting:
            self._was_short = True
        return self.is_shedding and self.inside >= self.lasting

    def entered(self) -> None:
        """Count a request that was read."""
        self.inside += 1

    def left(self, requests: int = 1) -> None:
        """Count answers, also those that a model refused."""
        self.inside -= requests
        self._answered += requests

    @property
    def _refused_by_models(self) -> int:
        return sum(version.batcher.refused for version in self._models.identities.values())

    @property
    def lasting(self) -> int:
        """How many requests may be inside under overload."""
        return max(FEWEST, math.ceil(max(WAIT_S, WAIT_BATCHES * self._alone_s) * self._rate))

    def _begin_window(self) -> None:
        self._since = self._clock()
        self._offered = self._answered = 0
        self._refused = self._refused_by_models
        self._was_short = False

    def _end_window(self) -> None:
        """Decide once for each window: overload begins after some with too many, whose queue was never short."""
        seconds = self._clock() - self._since
        answered = self._answered - (self._refused_by_models - self._refused)
        if seconds < (SHEDDING_WINDOW_S if self.is_shedding else WINDOW_S) or answered < WINDOW_ANSWERS:
            return
        are_too_many = self._offered > EXCESS * answered
        is_overload = are_too_many and (self.is_shedding or not self._was_short)
        self._against = self._against + 1 if is_overload != self.is_shedding else 0
        if self._against >= WINDOWS:
            self.is_shedding, self._against = is_overload, 0
        self._rate = answered / seconds
        if not self._against and not self.is_shedding:
            self._alone_s = max(version.batcher.alone_s for version in self._models.identities.values())
        self._begin_window()

    def refusal(self) -> bytes:
        """Return an answer with 503, head and body, and count it."""
        self._metrics.answered(ROUTE, 503, 0.0)
        seconds = max(1, math.ceil(self.inside / self._rate)) if self._rate else 1
        message = f"the server has more requests than it can answer: try again in {seconds} s"
        body = json.dumps({"error": {"status": 503, "message": message}}).encode()
        head = (
            f"content-type: application/json\r\nretry-after: {seconds}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return b"HTTP/1.1 503 Service Unavailable\r\n" + head.encode() + body
