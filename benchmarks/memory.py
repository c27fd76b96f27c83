"""Measures what a training worker holds in memory: for its shard, and as steps go by.

For the shard: two real runs on a Ray cluster, 400 MB of rows against 4 MB, equally many steps; the workers' peak
of resident memory (VmHWM, which the kernel keeps without a gap; shared pages count in full) in the one less that
in the other, over the difference of the shards' bytes. 1 means that the shard lies in memory once, in the
object store's pages, mapped; 2 would be a private copy beside them.

Over steps: one long run; resident memory (Rss of smaps_rollup) at its end against that at half of it. Before, the
worker that writes checkpoints grows by some 30 MB: each is written by a new thread, and the allocator opens an arena
for each thread up to a bound.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from harness import (
    FEATURES,
    WORKERS,
    Cluster,
    Figure,
    Report,
    Row,
    ShoalRun,
    main,
    progress,
    ray_cluster,
    reference_source,
    run_shoal,
    scratch,
)

LARGE_ROWS, TINY_ROWS = 100_000, 1_000
ROW_BYTES = FEATURES * 4 + 8
STEPS = 1500  # more than an epoch of the large one: every row is touched
LONG_ROWS, LONG_STEPS = 20_000, 20_000
SAMPLE_S = 0.1
CPUS = 4  # Ray Data reads beside the two workers
MB = 1e6


@dataclass
class Trace:
    """What one worker process was seen to hold."""

    peak: int = 0
    rss: list[tuple[float, int]] = field(default_factory=list)  # (time, bytes)

    def at(self, since_s: float, until_s: float) -> float:
        """Return the median resident bytes within a window."""
        return median(held for at_s, held in self.rss if since_s <= at_s <= until_s)


class Sampler:
    """Samples the train workers of a cluster while it is open."""

    def __init__(self, cluster: Cluster) -> None:
        self.traces: dict[int, Trace] = {}
        self._cluster = cluster
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._quit.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._quit.wait(SAMPLE_S):
            for process in self._cluster.train_workers():
                try:
                    peak = _kilobytes(process, "status", "VmHWM") * 1024
                    held = _kilobytes(process, "smaps_rollup", "Rss") * 1024
                except (OSError, KeyError):
                    continue  # it ended
                trace = self.traces.setdefault(process.pid, Trace())
                trace.peak = max(trace.peak, peak)
                trace.rss.append((time.time(), held))


def sampled_run(cluster: Cluster, folder: Path, rows: int, steps: int) -> tuple[ShoalRun, list[Trace]]:
    """Train for some steps and return the run and what each worker held."""
    epochs = f"train.epochs={steps}"  # as many as max_steps needs, whatever the rows
    settings = [f"data.source={reference_source(rows)}", epochs, f"train.max_steps={steps}"]
    with Sampler(cluster) as sampler:
        done = run_shoal(folder, cluster.address, *settings, "checkpoint.every_steps=500")
    traces = [trace for trace in sampler.traces.values() if trace.at(0.0, time.time())]
    assert len(traces) == WORKERS, f"{len(traces)} worker processes were seen, not {WORKERS}"
    return done, traces


def shard_multiple(cluster: Cluster, folder: Path) -> tuple[float, float]:
    """Return the peak's and the steady state's growth as multiples of a shard's bytes; the larger worker's."""
    large, large_traces = sampled_run(cluster, folder, LARGE_ROWS, STEPS)
    tiny, tiny_traces = sampled_run(cluster, folder, TINY_ROWS, STEPS)
    shard = (LARGE_ROWS - TINY_ROWS) * ROW_BYTES / WORKERS
    peak = max(trace.peak for trace in large_traces) - median(trace.peak for trace in tiny_traces)
    steady = max(_last_second(large, trace) for trace in large_traces)
    steady -= median(_last_second(tiny, trace) for trace in tiny_traces)
    return peak / shard, steady / shard


def growth_over_steps(cluster: Cluster, folder: Path) -> tuple[float, float]:
    """Return a worker's resident MB at half of a long run, and at its end; of the one that grew more."""
    done, traces = sampled_run(cluster, folder, LONG_ROWS, LONG_STEPS)
    span, half = LONG_STEPS // 10, LONG_STEPS // 2
    windows = [(done.step_ends_s[last - span], done.step_ends_s[last]) for last in (half, LONG_STEPS)]
    held = [[trace.at(*window) / MB for window in windows] for trace in traces]
    before, after = max(held, key=lambda pair: pair[1] - pair[0])
    return before, after


def measure(repeat: int) -> Report:
    peaks: list[float] = []
    steadies: list[float] = []
    befores: list[float] = []
    afters: list[float] = []
    with scratch() as folder, ray_cluster(CPUS) as cluster:
        for number in range(repeat):
            peak, steady = shard_multiple(cluster, folder)
            before, after = growth_over_steps(cluster, folder)
            peaks.append(peak)
            steadies.append(steady)
            befores.append(before)
            afters.append(after)
            progress(
                f"round {number + 1}/{repeat}: shard x {peak:.3f} at the peak, x {steady:.3f} steady; "
                f"{before:.1f} MB, then {after:.1f} MB"
            )
    growth = [100 * (after / before - 1) for before, after in zip(befores, afters, strict=True)]
    half = f"{LONG_STEPS // 2:,}"
    rows = [
        Row("peak memory for the shard / its bytes", peaks, "x"),
        Row("steady memory for the shard / its bytes", steadies, "x"),
        Row(f"a worker at step {half}", befores, "MB"),
        Row(f"a worker at step {LONG_STEPS:,}", afters, "MB"),
        Row("growth in between", growth, "%"),
    ]
    figures = [
        Figure("peak memory for the shard / its bytes", rows[0].median, 1.2, is_at_least=False),
        Figure(f"memory growth, step {half} to {LONG_STEPS:,}", rows[-1].median, 1.0, False, unit="%"),
    ]
    shard_mb = LARGE_ROWS * ROW_BYTES / WORKERS / MB
    return Report("Memory of a training worker", rows, figures, [f"A shard of {shard_mb:.0f} MB."])


def _last_second(done: ShoalRun, trace: Trace) -> float:
    end = max(done.step_ends_s.values())
    return trace.at(end - 1.0, end)


def _kilobytes(process: psutil.Process, file: str, name: str) -> int:
    for line in Path(f"/proc/{process.pid}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise KeyError(name)


if __name__ == "__main__":
    main(measure, repeat=3)
