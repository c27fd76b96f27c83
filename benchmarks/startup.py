"""Measures the seconds from `python jobs/train.py` to the first optimizer step, against bare Ray Train.

Both on the same Ray cluster, running already; both on the reference data and model with 2 workers. The peer is a
bare script: Ray Data, `TorchTrainer.fit` at Ray's defaults, `iter_torch_batches`; it checks and records nothing.
Shoal does everything it always does: checks the config, the data and the model, claims a run folder, opens
a new MLflow store (whose tables are made meanwhile), starts its watchdog.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

from harness import (
    BATCH_PER_WORKER,
    PEERS,
    WORKERS,
    Cluster,
    Figure,
    Report,
    Row,
    environment,
    main,
    progress,
    ratios,
    ray_cluster,
    run,
    run_shoal,
    scratch,
    write_reference_data,
)
from quiet import Quiet, Timing

CPUS = 4  # Ray Data's tasks run beside the peer's two workers
STEPS = 20


def bare_ray(cluster: Cluster, data: Path) -> Timing:
    """Return seconds to the first step of the bare script."""
    out = data.with_name("bare.json")
    command = [
        sys.executable,
        str(PEERS / "ray_train.py"),
        f"--data={data}",
        f"--steps={STEPS}",
        f"--out={out}",
    ]
    command += [
        f"--batch-size={BATCH_PER_WORKER}",
        f"--workers={WORKERS}",
        f"--storage-path={data.parent}/ray",
    ]
    started_s = time.time()
    run(command, environment(RAY_ADDRESS=cluster.address))
    first_s = json.loads(out.read_text())
    return Timing(first_s - started_s, started_s, first_s)


def shoal(cluster: Cluster, folder: Path) -> Timing:
    """Return seconds to the first step of `jobs/train.py`, by the time its journal gives it."""
    done = run_shoal(folder, cluster.address, f"train.max_steps={STEPS}")
    first_s = done.step_ends_s[1]
    return Timing(first_s - done.started_s, done.started_s, first_s)


def measure(repeat: int) -> Report:
    bare: list[float] = []
    ours: list[float] = []
    quiet = Quiet()
    with scratch() as folder, ray_cluster(CPUS) as cluster:
        data = folder / "data.npz"
        write_reference_data(data)
        for number in range(repeat):
            bare.append(quiet.value(partial(bare_ray, cluster, data)))
            with scratch() as new:
                ours.append(quiet.value(partial(shoal, cluster, new)))
            progress(f"round {number + 1}/{repeat}: bare Ray Train {bare[-1]:.1f} s, Shoal {ours[-1]:.1f} s")
    share = Row("Shoal / bare Ray Train", ratios(ours, bare), "x")
    rows = [Row("bare Ray Train", bare, "s"), Row("Shoal", ours, "s"), share]
    figures = [Figure("start to first step against bare Ray Train", share.median, 1.0, is_at_least=False)]
    return Report("From the command to the first optimizer step", rows, figures, [quiet.note])


if __name__ == "__main__":
    main(measure)
