"""Measures steady training throughput: Shoal against torchrun + DDP, Lightning, and no communication at all.

The reference workload (20,000 rows of 1,000 features, MLP 1000-128-64-10, Adam, 32 samples per worker, 2
workers, gloo, one thread each), the same rows for all. The measure is the same for all: samples trained divided
by the wall seconds of whole epochs after the first, with everything between two epochs' ends included and no
evaluation. Shoal runs as a user runs it, `jobs/train.py` on a Ray cluster: it alone records every step in its
journal and in MLflow and writes a checkpoint per epoch while it is measured; the peers do nothing but train.

The limit is the leanest loop in the same two processes without any communication.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness import (
    BATCH_PER_WORKER,
    PEERS,
    ROWS,
    WORKERS,
    Figure,
    Report,
    Row,
    epochs_rate,
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

EPOCHS = 9
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={WORKERS}"]


def ddp(data: Path, *more: str) -> Timing:
    """Return samples per second of torchrun + DDP + DataLoader(DistributedSampler)."""
    out = data.with_name("ddp.json")
    run([*TORCHRUN, str(PEERS / "ddp.py"), *_shared(data, out), *more])
    return epochs_rate(json.loads(out.read_text()), ROWS)


def ddp_tuned(data: Path) -> Timing:
    """Return samples per second of the same, tuned by hand."""
    return ddp(data, "--tuned")


def lightning(data: Path) -> Timing:
    """Return samples per second of Lightning's Trainer."""
    out = data.with_name("lightning.json")
    run([sys.executable, str(PEERS / "lightning_ddp.py"), *_shared(data, out), f"--workers={WORKERS}"])
    return epochs_rate(json.loads(out.read_text()), ROWS)


def shoal(data: Path) -> Timing:
    """Return samples per second of Shoal, in a cluster that runs for this run alone."""
    # A thousandth of the rows is kept for the one test at the end, which is outside what is timed.
    settings = ["data.validation_fraction=0", "data.test_fraction=0.001", f"train.epochs={EPOCHS}"]
    with ray_cluster() as cluster:
        done = run_shoal(data.parent, cluster.address, *settings)
    return epochs_rate(done.epoch_ends_s(EPOCHS), done.result["samples_seen"] // EPOCHS)


def no_communication(data: Path) -> Timing:
    """Return samples per second of two processes that train alone, together."""
    out = data.with_name("alone.json")
    run([*TORCHRUN, str(PEERS / "no_communication.py"), *_shared(data, out)])
    ends = [json.loads(out.with_suffix(f".{rank}").read_text()) for rank in range(WORKERS)]
    rates = [epochs_rate(one, ROWS // WORKERS) for one in ends]
    return replace(rates[0], value=sum(rate.value for rate in rates))


CONTESTANTS: dict[str, Callable[[Path], Timing]] = {
    "torchrun + DDP": ddp,
    "Shoal": shoal,
    "Lightning": lightning,
    "torchrun + DDP, hand-tuned": ddp_tuned,
    "limit: no communication": no_communication,
}


def measure(repeat: int) -> Report:
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    quiet = Quiet()
    with scratch() as folder:
        data = folder / "data.npz"
        write_reference_data(data)
        for number in range(repeat):
            for name, contestant in CONTESTANTS.items():
                rates[name].append(quiet.value(partial(contestant, data)))
                progress(f"round {number + 1}/{repeat}: {name} {rates[name][-1]:,.0f} samples/s")
    rows = [Row(name, values, "samples/s") for name, values in rates.items()]
    shares = {name: Row(f"Shoal / {name}", ratios(rates["Shoal"], rates[name]), "x") for name in rates}
    del shares["Shoal"]
    figures = [
        Figure("throughput against torchrun + DDP", shares["torchrun + DDP"].median, 1.3, is_at_least=True),
        Figure("throughput against Lightning", shares["Lightning"].median, 1.7, is_at_least=True),
    ]
    return Report("Training throughput, reference workload", [*rows, *shares.values()], figures, [quiet.note])


def _shared(data: Path, out: Path) -> list[str]:
    return [f"--data={data}", f"--epochs={EPOCHS}", f"--batch-size={BATCH_PER_WORKER}", f"--out={out}"]


if __name__ == "__main__":
    main(measure)
