"""What answers batches: a model in a thread of this process. `cluster.serving` has one whose models are replicas."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from shoal.data.sources.base import Block
from shoal.inference.predictor import Answers, Predictor

Params = Mapping[str, Any]
_END = object()


class Engine(Protocol):
    """A model, wherever it runs.

    Attributes:
        lanes: how many batches it answers at a time.
    """

    lanes: int

    async def predict(self, block: Block, params: Params) -> Answers:
        """Answer a batch."""
        ...

    def stream(self, text: str, params: Params) -> AsyncIterator[str]:
        """Continue a text, as it is generated."""
        ...

    async def close(self) -> None:
        """End it, once it answers nothing any more."""
        ...


class LocalEngine:
    """A model in one thread, so that the event loop goes on while it computes."""

    lanes = 1

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def predict(self, block: Block, params: Params) -> Answers:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, self._predictor.answers, block, params
        )

    async def stream(self, text: str, params: Params) -> AsyncIterator[str]:
        async for piece in in_thread(self._thread, lambda: self._predictor.stream(text, params)):
            yield piece

    async def close(self) -> None:
        self._thread.shutdown(wait=False)


async def in_thread(executor: ThreadPoolExecutor, make: Any) -> AsyncIterator[Any]:
    """Iterate in a thread, and yield here; an iterator that nobody reads any more ends at its next item."""
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[Any] = asyncio.Queue()
    is_abandoned = threading.Event()

    def iterate() -> None:
        found: Iterator[Any] = make()
        for item in found:
            if is_abandoned.is_set():
                return
            loop.call_soon_threadsafe(items.put_nowait, item)

    work = loop.run_in_executor(executor, iterate)
    work.add_done_callback(lambda _: items.put_nowait(_END))
    try:
        while (item := await items.get()) is not _END:
            yield item
        await work
    finally:
        is_abandoned.set()
