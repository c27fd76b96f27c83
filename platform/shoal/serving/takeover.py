"""An alias that moves is followed: the new version is loaded and tested beside the old one, then takes over."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from shoal.serving.metrics import Metrics
from shoal.serving.models import ServedModel, Version

logger = logging.getLogger(__name__)

Locate = Callable[
    [str], str
]  # an alias becomes the URI of the version that it names now; anything else stays
Load = Callable[[str], Awaitable[Version]]


async def follow(model: ServedModel, locate: Locate, load: Load, every_s: float, metrics: Metrics) -> None:
    """Look an alias up for as long as the server runs.

    A version that does not load, or whose golden rows come out otherwise, is reported once and not tried again: the one
    before goes on.
    """
    refused: set[str] = set()
    while True:
        await asyncio.sleep(every_s)
        try:
            uri = await asyncio.to_thread(locate, model.uri)
        except Exception as error:
            logger.warning(
                "%s cannot be looked up (%s): version %s goes on", model.uri, error, model.current.number
            )
            continue
        if uri == model.current.uri or uri in refused:
            continue
        try:
            version = await load(uri)
        except Exception as error:
            refused.add(uri)
            logger.warning("%s is not taken over (%s): version %s goes on", uri, error, model.current.number)
            continue
        await take_over(model, version)
        metrics.took_over(model.name)
        logger.info("%s: version %s took over", model.name, version.number)


async def take_over(model: ServedModel, version: Version) -> None:
    """Let a version answer from now on; the one before ends once it has answered what it began."""
    before, model.current = model.current, version
    await before.batcher.drained()
    await before.batcher.engine.close()
