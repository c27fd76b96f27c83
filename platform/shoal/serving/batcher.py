"""Requests become batches: a free model takes all that waits, so that a request to an idle one waits for nothing."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from shoal.inference.predictor import Answers
from shoal.serving.engine import Engine, Params
from shoal.serving.errors import RequestError
from shoal.serving.rows import Rows

SMOOTHING = 0.1  # of a new measurement in the mean of those before


@dataclass(eq=False)
class _Waiting:
    rows: Rows
    params: Params
    answers: "asyncio.Future[Answers]"


@dataclass
class Batcher:
    """The queue before an engine. All of it runs in the event loop.

    Attributes:
        most_rows: of a batch of several requests.
        most_requests: at a time, those that are being read or answered included.
        measured: called with the rows and the seconds of each batch.
        refused: how many requests were one too many.
        alone_s: the mean time of a request that is a batch of its own.
    """

    engine: Engine
    most_rows: int
    most_requests: int
    measured: Callable[[int, float], None] = lambda rows, seconds: None
    requests: int = 0
    alone_s: float = 0.0
    refused: int = 0
    _queue: deque[_Waiting] = field(default_factory=deque)
    _turns: deque["asyncio.Future[None]"] = field(default_factory=deque)
    _busy: int = 0
    _seconds_per_request: float = 0.0
    _since: dict[object, float] = field(default_factory=dict)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is read and answered.

        Raises:
            RequestError: 503 with Retry-After, where there are too many.
        """
        if self.requests >= self.most_requests:
            self.refused += 1
            seconds = max(1, math.ceil(self.requests * self._seconds_per_request))
            raise RequestError(
                503,
                f"{self.requests} requests are waiting: try again in {seconds} s (serve.max_queue)",
                headers={"Retry-After": str(seconds)},
            )
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def predict(self, rows: Rows, params: Params) -> Answers:
        """Answer the rows of a request, together with those of others."""
        answers: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(rows, params, answers))
        self._start()
        return await answers

    async def stream(self, text: str, params: Params) -> AsyncIterator[str]:
        """Continue a text as it is generated; the engine does nothing else meanwhile."""
        if self._busy >= self.engine.lanes:
            turn = asyncio.get_running_loop().create_future()
            self._turns.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # its turn came in the same moment
                    self._free()
                raise
        else:
            self._busy += 1
        since = time.perf_counter()
        try:
            async for piece in self.engine.stream(text, params):
                yield piece
        finally:
            self._count(1, 1, time.perf_counter() - since)
            self._free()

    def stuck_for_s(self) -> float:
        """Return for how long the oldest batch has been computed; 0.0: there is none."""
        return time.perf_counter() - min(self._since.values()) if self._since else 0.0

    async def drained(self) -> None:
        """Wait until no request is in it."""
        while self.requests:
            await asyncio.sleep(0.05)

    def _start(self) -> None:
        while self._queue and self._busy < self.engine.lanes:
            if batch := self._next():
                self._busy += 1
                self._task = asyncio.ensure_future(self._answer(batch))

    def _next(self) -> list[_Waiting]:
        """Take requests of the same parameters from the front, and drop those that nobody waits for any more."""
        batch: list[_Waiting] = []
        rows = 0
        while self._queue:
            one = self._queue[0]
            if one.answers.done():
                self._queue.popleft()
                continue
            if batch and (rows + one.rows.count > self.most_rows or one.params != batch[0].params):
                break
            batch.append(self._queue.popleft())
            rows += one.rows.count
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        since = self._since[batch[0]] = time.perf_counter()
        count = sum(one.rows.count for one in batch)
        try:
            answers = await self.engine.predict(_joined([one.rows for one in batch]), batch[0].params)
            _share(batch, answers)
        except Exception as error:
            await self._answer_apart(batch, error)
        finally:
            del self._since[batch[0]]
            self._count(len(batch), count, time.perf_counter() - since)
            self._free()

    async def _answer_apart(self, batch: list[_Waiting], error: Exception) -> None:
        """Answer each request alone, where a batch failed: another one's rows are no reason to fail."""
        for one in batch:
            if one.answers.done():
                continue
            try:
                if len(batch) == 1:
                    raise error
                one.answers.set_result(await self.engine.predict(one.rows.columns, one.params))
            except Exception as own:
                if not one.answers.done():
                    one.answers.set_exception(own)

    def _free(self) -> None:
        """Let a stream that waits begin, else the next batch: streams were there first, and are few."""
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy -= 1
        self._start()

    def _count(self, requests: int, rows: int, seconds: float) -> None:
        of_one = seconds / requests / self.engine.lanes
        self._seconds_per_request = _mean(self._seconds_per_request, of_one)
        if requests == 1:
            self.alone_s = _mean(self.alone_s, seconds)
        self.measured(rows, seconds)


def _mean(before: float, value: float) -> float:
    return before + SMOOTHING * (value - before) if before else value


def _joined(rows: list[Rows]) -> dict[str, np.ndarray]:
    if len(rows) == 1:
        return dict(rows[0].columns)
    return {name: np.concatenate([one.columns[name] for one in rows]) for name in rows[0].columns}


def _share(batch: list[_Waiting], answers: Answers) -> None:
    start = 0
    for one in batch:
        end = start + one.rows.count
        if not one.answers.done():
            one.answers.set_result({name: values[start:end] for name, values in answers.items()})
        start = end
