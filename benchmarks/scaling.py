"""Measures how the loop's time grows with the rows: it must be linear.

The training loop in this process (one worker, resident shard, reference model), an epoch over n, 2n and 4n rows,
alternately; as many epochs of each as make equally many steps. Linear means that a row costs no more at any size;
the target bounds by how much its cost may exceed that at n. It may well fall: an epoch has a fixed part.
"""

from functools import partial

import torch

from harness import Figure, Report, Row, main, progress, ratios
from loop import make_shard, run_loop
from quiet import Quiet, Timing
from shoal.data.loader import ResidentShard
from shoal.tracking.journal import NoJournal

SIZES = (10_000, 20_000, 40_000)  # the smallest, 40 MB, exceeds the caches of the machine already
MOST = 10.0  # percent


def epoch_seconds(shard: ResidentShard) -> Timing:
    """Return the seconds of one epoch."""
    epochs = SIZES[-1] // shard.lanes.rows
    spent = run_loop(shard, epochs, NoJournal())
    return Timing(spent.seconds / epochs, spent.since_s, spent.until_s)


def measure(repeat: int) -> Report:
    torch.set_num_threads(1)
    quiet = Quiet()
    shards = {rows: make_shard(rows) for rows in SIZES}
    seconds: dict[int, list[float]] = {rows: [] for rows in SIZES}
    for shard in shards.values():
        run_loop(shard, 1, NoJournal())  # every page touched once
    for number in range(repeat):
        for rows, shard in shards.items():
            seconds[rows].append(quiet.value(partial(epoch_seconds, shard)))
        progress(f"round {number + 1}/{repeat}: {', '.join(f'{seconds[rows][-1]:.2f} s' for rows in SIZES)}")
    base = SIZES[0]
    lines = [Row(f"{size:,} rows: an epoch", seconds[size], "s") for size in SIZES]
    lines += [Row(f"{size:,} rows: a step", _per_step_us(seconds[size], size), "us") for size in SIZES]
    figures = []
    for size in SIZES[1:]:
        times = size // base
        change = [100 * (ratio / times - 1) for ratio in ratios(seconds[size], seconds[base])]
        line = Row(f"{times} times the rows: a row's time differs by", change, "%")
        lines.append(line)
        name = f"a row takes more at {times} times the rows by"
        figures.append(Figure(name, line.median, MOST, is_at_least=False, unit="%"))
    return Report("The loop's time against rows", lines, figures, [quiet.note])


def _per_step_us(seconds: list[float], rows: int) -> list[float]:
    return [1e6 * one / -(-rows // 32) for one in seconds]


if __name__ == "__main__":
    main(measure)
