"""Measures what recording every step costs, against recording next to nothing, as a share of step time.

Three views, each at one metric point per step (`track.every_steps=1`, the default):

- the loop in this process, with a journal against a record that discards everything, alternately;
- a real run's own account: `shares.tracking` of its result.json, which also counts the wait for the other worker
  when losses are added up;
- two real runs on a Ray cluster, a point per step against a point per epoch: whether there is anything else to notice.
  There is no target for it: on two cores such runs differ by up to a fifth of themselves whatever they record.
"""

import time
from functools import partial
from pathlib import Path
from statistics import median

import torch

from harness import Cluster, Figure, Report, Row, epochs_rate, main, progress, ray_cluster, run_shoal, scratch
from loop import make_shard, run_loop
from quiet import Quiet, Timing
from shoal.data.loader import ResidentShard
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import Journal, NoJournal

LOOP_ROWS, LOOP_EPOCHS, PAIRS = 8192, 2, 40
NEVER = 1 << 40
RUN_EPOCHS = 13
STEPS_PER_EPOCH = 313
MOST = 2.0  # percent


def loop_cost(shard: ResidentShard, folder: Path) -> Timing:
    """Return by how many percent a journal of every step makes the loop slower.

    The median of many short pairs, either of the two first in turn: a run differs from the next by some percent.
    """
    ratios: list[float] = []
    since_s = time.time()
    for pair in range(PAIRS):
        journal = Journal(RunFolder(str(folder)), attempt=pair)
        both = [partial(run_loop, shard, LOOP_EPOCHS, NoJournal(), log_every=NEVER)]
        both.insert(pair % 2, partial(run_loop, shard, LOOP_EPOCHS, journal))
        seconds = [run().seconds for run in both]
        ratios.append(seconds[pair % 2] / seconds[1 - pair % 2])
    return Timing(100 * (median(ratios) - 1), since_s, time.time())


def run_with(cluster: Cluster, folder: Path, every_steps: int, shares: list[float]) -> Timing:
    """Return samples per second of a real run, and note its own share of tracking in percent."""
    settings = ["data.validation_fraction=0", "data.test_fraction=0.001", f"train.epochs={RUN_EPOCHS}"]
    done = run_shoal(folder, cluster.address, *settings, f"track.every_steps={every_steps}")
    shares.append(100 * done.result["shares"]["tracking"])
    return epochs_rate(done.epoch_ends_s(RUN_EPOCHS), done.result["samples_seen"] // RUN_EPOCHS)


def measure(repeat: int) -> Report:
    torch.set_num_threads(1)
    quiet = Quiet()
    shard = make_shard(LOOP_ROWS)
    in_loop: list[float] = []
    rare_rates: list[float] = []
    rates: list[float] = []
    rare_shares: list[float] = []
    shares: list[float] = []
    run_loop(shard, LOOP_EPOCHS, NoJournal())  # warm-up
    with scratch() as folder:
        for number in range(repeat):  # ahead of the cluster, whose idle processes wake now and then
            in_loop.append(quiet.value(partial(loop_cost, shard, folder / str(number))))
            progress(f"round {number + 1}/{repeat}: in the loop {in_loop[-1]:.2f}%")
    with scratch() as folder, ray_cluster() as cluster:
        for number in range(repeat):
            rare = partial(run_with, cluster, folder, STEPS_PER_EPOCH, rare_shares)
            rare_rates.append(quiet.value(rare))
            rates.append(quiet.value(partial(run_with, cluster, folder, 1, shares)))
            progress(
                f"round {number + 1}/{repeat}: share {shares[-1]:.2f}%, "
                f"{rare_rates[-1]:,.0f} and {rates[-1]:,.0f} samples/s"
            )
    slower = [100 * (rare / often - 1) for rare, often in zip(rare_rates, rates, strict=True)]
    rows = [
        Row("loop: slower by, with a journal of every step", in_loop, "%"),
        Row("run: its own share of tracking", shares, "%"),
        Row("run: its own share, a point per epoch", rare_shares, "%"),
        Row("run: a point per epoch", rare_rates, "samples/s"),
        Row("run: a point per step", rates, "samples/s"),
        Row("run: slower by, with a point per step", slower, "%"),
    ]
    figures = [
        Figure("journal in the loop, of step time", rows[0].median, MOST, is_at_least=False, unit="%"),
        Figure("tracking in a real run, of step time", rows[1].median, MOST, is_at_least=False, unit="%"),
    ]
    return Report("Cost of tracking at one point per step", rows, figures, [quiet.note])


if __name__ == "__main__":
    main(measure)
