"""Requests to batches: a free model takes all that waits, and the queue has an end."""

import asyncio

import numpy as np
import pytest

from shoal.serving.batcher import Batcher
from shoal.serving.errors import RequestError
from shoal.serving.rows import Rows


class Doubling:
    """An engine that doubles numbers, batch by batch, when it is allowed to; it fails at negative ones."""

    def __init__(self, lanes=1):
        self.lanes, self.batches, self.allowed = lanes, [], asyncio.Event()
        self.allowed.set()

    async def predict(self, block, params):
        self.batches.append(block["x"].tolist())
        await self.allowed.wait()
        if (block["x"] < 0).any():
            raise ValueError("negative")
        return {"prediction": block["x"] * 2}

    async def stream(self, text, params):
        for letter in text:
            await asyncio.sleep(0)
            yield letter


def rows(*values):
    return Rows({"x": np.array(values)}, len(values))


async def answers_of(batcher, *many, params=None):
    async def one(values):
        with batcher.admitted():
            return (await batcher.predict(rows(*values), params or {}))["prediction"].tolist()

    return await asyncio.gather(*map(one, many), return_exceptions=True)


async def settled():
    """Let every task go as far as it can; a timer may be due before they have, on a busy machine."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_waits_while_the_model_is_busy_becomes_one_batch():
    async def main():
        engine = Doubling()
        engine.allowed.clear()
        batcher = Batcher(engine, 5, 100)
        asking = asyncio.ensure_future(answers_of(batcher, [1], [2], [3, 4], [5, 6], [7]))
        await settled()
        assert engine.batches == [[1]]  # the first waits for nobody
        engine.allowed.set()
        assert await asking == [[2], [4], [6, 8], [10, 12], [14]]
        assert engine.batches == [[1], [2, 3, 4, 5, 6], [7]]  # as many as five rows
        assert batcher.requests == 0

    asyncio.run(main())


def test_a_request_that_makes_a_batch_fail_fails_alone():
    async def main():
        engine = Doubling()
        engine.allowed.clear()
        batcher = Batcher(engine, 100, 100)
        asking = asyncio.ensure_future(answers_of(batcher, [1], [2], [-3], [4]))
        await settled()
        engine.allowed.set()
        found = await asking
        assert [found[0], found[1], found[3]] == [[2], [4], [8]]
        assert isinstance(found[2], ValueError)

    asyncio.run(main())


def test_requests_of_other_parameters_are_apart_and_those_given_up_are_dropped():
    async def main():
        engine = Doubling()
        engine.allowed.clear()
        batcher = Batcher(engine, 100, 100)
        asking = [
            asyncio.ensure_future(answers_of(batcher, [value], params=params))
            for value, params in ((1, {}), (2, {"seed": 1}), (3, {"seed": 2}), (4, {"seed": 2}))
        ]
        await settled()
        asking[1].cancel()
        await asyncio.sleep(0)
        engine.allowed.set()
        await asyncio.wait(asking)
        assert engine.batches == [[1], [3, 4]]
        assert batcher.requests == 0

    asyncio.run(main())


def test_more_requests_than_the_queue_holds_are_refused_with_the_seconds_to_wait():
    async def main():
        engine = Doubling()
        engine.allowed.clear()
        batcher = Batcher(engine, 1, 2)
        batcher._seconds_per_request = 3.2
        asking = asyncio.ensure_future(answers_of(batcher, [1], [2], [3]))
        await settled()
        engine.allowed.set()
        found = await asking
        assert found[:2] == [[2], [4]]
        assert isinstance(found[2], RequestError)
        assert (found[2].status, found[2].headers["Retry-After"]) == (503, "7")

    asyncio.run(main())


def test_lanes_answer_at_the_same_time():
    async def main():
        engine = Doubling(lanes=2)
        engine.allowed.clear()
        batcher = Batcher(engine, 100, 100)
        asking = asyncio.ensure_future(answers_of(batcher, [1], [2], [3]))
        await settled()
        assert engine.batches == [[1], [2]]
        engine.allowed.set()
        assert await asking == [[2], [4], [6]]

    asyncio.run(main())


def test_a_stream_takes_its_turn_and_gives_the_model_back():
    async def main():
        engine = Doubling()
        engine.allowed.clear()
        batcher = Batcher(engine, 100, 100)

        async def read(text):
            return "".join([piece async for piece in batcher.stream(text, {})])

        first = asyncio.ensure_future(answers_of(batcher, [1]))
        await settled()
        streams = [asyncio.ensure_future(read(text)) for text in ("abc", "given up", "xyz")]
        await asyncio.sleep(0)
        streams[1].cancel()
        last = asyncio.ensure_future(answers_of(batcher, [2]))
        await asyncio.sleep(0)
        engine.allowed.set()
        assert await first == [[2]]
        assert await asyncio.wait_for(asyncio.gather(streams[0], streams[2], last), 5) == [
            "abc",
            "xyz",
            [[4]],
        ]

    asyncio.run(main())


def test_a_batch_that_hangs_is_noticed():
    async def main():
        engine = Doubling()
        engine.allowed.clear()
        batcher = Batcher(engine, 100, 100)
        assert batcher.stuck_for_s() == 0.0
        asking = asyncio.ensure_future(answers_of(batcher, [1]))
        await settled()
        await asyncio.sleep(0.02)
        assert batcher.stuck_for_s() >= 0.015
        engine.allowed.set()
        await asking
        assert batcher.stuck_for_s() == 0.0

    asyncio.run(main())


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_a_wait_is_never_named_below_a_second(seconds):
    batcher = Batcher(None, 1, 0)
    batcher._seconds_per_request = seconds
    with pytest.raises(RequestError) as caught, batcher.admitted():
        pass
    assert caught.value.headers["Retry-After"] == "1"
