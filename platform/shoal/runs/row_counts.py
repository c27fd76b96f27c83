"""On how many rows a worker computes at a time over an epoch, and a batch size for a model that needs two of them."""

from collections.abc import Callable, Iterator
from itertools import chain

from torch import nn

from shoal.data.sampler import Lanes
from shoal.distributed.sync_batchnorm import use_sync_batchnorm
from shoal.errors import ModelError
from shoal.runs.config import RunConfig
from shoal.training.loop import total_steps


def rows_at_a_time(rows: int, workers: int, micro_batch_size: int | None) -> set[int]:
    """Return on how many rows of a batch any worker computes at a time; a worker without a row computes on one."""
    largest = -(-rows // workers)
    size = min(micro_batch_size or largest, largest)
    found: set[int] = set()
    for part in {rows // workers, largest}:
        found |= {size} if part >= size else set()
        found |= {part % size} if part % size else set()
        if -(-part // size) < -(-largest // size):
            found.add(1)
    return found


def check_row_counts(
    config: RunConfig, rows: int, model: nn.Module, why_not_one: Callable[[], str | None]
) -> None:
    """Refuse a model that some step would give a single row, if it does not take one (BatchNorm does not).

    Args:
        rows: of the training split.
        model: whose BatchNorm layers compute over all workers afterwards, where they will in training.
        why_not_one: computes on one row, and says why it cannot.

    Raises:
        ModelError: a step would; the message names a batch size that fits.
    """
    batch, workers, train = config.data.global_batch_size, max(1, config.scale.data_size), config.train
    last = _single(config, rows, batch)
    if last is None:
        return
    if config.scale.sync_batchnorm and workers > 1 and train.micro_batch_size != "auto":
        use_sync_batchnorm(model, lambda vector: vector, lambda: True)
    reason = why_not_one()
    if reason is None:
        return
    what = f"of {rows} training rows in batches of data.global_batch_size={batch} the last has {last}"
    if last == batch:
        what = f"a batch has data.global_batch_size={batch} rows"
    what += f", divided among {workers} workers" if workers > 1 else ""
    what += f", in parts of train.micro_batch_size={train.micro_batch_size}" if _micro(config) else ""
    what += ", and one is left alone" if last > 1 else ""
    fits = next(
        (size for size in _nearest(batch, workers, rows) if _single(config, rows, size) is None), None
    )
    remedy = f"set data.global_batch_size={fits}" if fits else "set another train.micro_batch_size"
    raise ModelError(
        f"model.name='{config.model.name}' cannot train on 1 row at a time ({' '.join(reason.split())}): {what}; "
        f"{remedy}, or leave out layers that normalize over a batch"
    )


def _micro(config: RunConfig) -> int | None:
    size = config.train.micro_batch_size
    return size if isinstance(size, int) else None


def _single(config: RunConfig, rows: int, batch: int) -> int | None:
    """Return the rows of a batch of which some worker computes on one alone; None: there is none."""
    workers = max(1, config.scale.data_size)
    steps = total_steps(config.train, Lanes(rows, batch, 0).steps)
    batches = [batch] if rows >= batch else []
    if rows % batch and steps > rows // batch:
        batches.append(rows % batch)
    return next((count for count in batches if 1 in rows_at_a_time(count, workers, _micro(config))), None)


def _nearest(batch: int, workers: int, rows: int) -> Iterator[int]:
    """Yield other batch sizes, the nearest first."""
    pairs = ((batch + step, batch - step) for step in range(1, max(batch, rows)))
    return (size for size in chain.from_iterable(pairs) if 2 * workers <= size <= rows)
