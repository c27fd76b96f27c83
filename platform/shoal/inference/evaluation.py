"""A trained model evaluated on the raw rows of a split."""

import logging
from collections.abc import Iterable, Iterator

from shoal.data.dataset_info import blocks_with_splits
from shoal.data.misfits import Misfits
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS
from shoal.data.sources.base import Block, Source, read_again
from shoal.inference.predictor import Predictor
from shoal.tasks.accumulator import Accumulator

logger = logging.getLogger(__name__)


def split_blocks(
    source: Source, preprocessing: PreprocessingSpec, split: str | None = None
) -> Iterator[Block]:
    """Yield the rows of one split, block by block; without a split, all rows."""
    if split is not None and source.states(split):  # no other rows are in it, and none are read
        yield from (block for _, block in source.blocks(split))
        return
    for block, splits in blocks_with_splits(source, preprocessing):
        if split is None:
            if len(splits):
                yield block
            continue
        is_in_split = splits == SPLITS.index(split)
        if is_in_split.any():
            yield {name: column[is_in_split] for name, column in block.items()}


def first_rows(blocks: Iterable[Block], most: int | None) -> Iterator[Block]:
    """Yield so many of the rows, and read no further; None: all."""
    left = most
    for block in blocks:
        if left is None:
            yield block
            continue
        yield {name: column[:left] for name, column in block.items()}
        left -= min(left, len(next(iter(block.values()))))
        if not left:
            return


def evaluate_on_split(
    predictor: Predictor, source: Source, preprocessing: PreprocessingSpec, split: str | None
) -> Accumulator | None:
    """Return what was accumulated over the rows of one split, or over all, as `evaluate_on_blocks`."""
    return read_again(lambda: evaluate_on_blocks(predictor, split_blocks(source, preprocessing, split)))


def evaluate_on_blocks(
    predictor: Predictor, blocks: Iterable[Block], added: Accumulator | None = None
) -> Accumulator | None:
    """Return what was accumulated over all labelled rows; None: there are no rows.

    Args:
        added: what to add to; None: what the model's task measures.

    Raises:
        DataError: a column is missing or mostly unreadable, or a label is one that the model does not know.
    """
    added = predictor.accumulator() if added is None else added
    misfits = Misfits(predictor.transform)
    for block in blocks:
        misfits.add(block)
        misfits.check()
        predictor.evaluate(block, added)
    for line in misfits.lines():
        logger.warning("%s", line)
    return added if added.rows else None
