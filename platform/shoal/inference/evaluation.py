"""A trained model evaluated on raw rows: the task's sums over the rows of a split."""

import logging
from collections.abc import Iterable, Iterator

from torch import Tensor

from shoal.data.dataset_info import blocks_with_splits
from shoal.data.misfits import Misfits
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS
from shoal.data.sources.base import Block, Source, read_again
from shoal.inference.predictor import Predictor

logger = logging.getLogger(__name__)


def split_blocks(
    source: Source, preprocessing: PreprocessingSpec, split: str | None = None
) -> Iterator[Block]:
    """Yield the rows of one split, block by block; without a split, all rows."""
    for block, splits in blocks_with_splits(source, preprocessing):
        if split is None:
            if len(splits):
                yield block
            continue
        is_in_split = splits == SPLITS.index(split)
        if is_in_split.any():
            yield {name: column[is_in_split] for name, column in block.items()}


def sum_over_split(
    predictor: Predictor, source: Source, preprocessing: PreprocessingSpec, split: str | None
) -> Tensor | None:
    """Return the sums over the rows of one split, or over all, as `sum_over_blocks`."""
    return read_again(lambda: sum_over_blocks(predictor, split_blocks(source, preprocessing, split)))


def sum_over_blocks(predictor: Predictor, blocks: Iterable[Block]) -> Tensor | None:
    """Return the sums over all labelled rows, of which `predictor.task.metrics` makes means; None: there are no rows.

    Raises:
        DataError: a column is missing or mostly unreadable, or a label is one that the model does not know.
    """
    total: Tensor | None = None
    misfits = Misfits(predictor.transform)
    for block in blocks:
        misfits.add(block)
        misfits.check()
        sums = predictor.sums(block)
        total = sums if total is None else total + sums
    for line in misfits.lines():
        logger.warning("%s", line)
    return total
