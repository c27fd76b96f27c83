"""Batch prediction beside a bare PyTorch loop over the same parquet: python benchmarks/predict.py [ROWS].

Each reads row groups, standardizes, predicts and writes all columns with the label and the probabilities. Rounds are
ABBA; one process with one thread each, then two Ray actors with one thread each. Then the peak memory of predicting 100
thousand and 2 million rows.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]

FEATURES, GROUP_ROWS, ROUNDS = 20, 1 << 16, 2
LARGE, SMALL = 2_000_000, 100_000


def write_input(path, rows):
    """Write rows of `FEATURES` numbers and a label, group by group."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw, writer = np.random.default_rng(0), None
    for first in range(0, rows, GROUP_ROWS):
        x = draw.normal(size=(min(GROUP_ROWS, rows - first), FEATURES)).astype(np.float32)
        columns = {f"x{number}": x[:, number] for number in range(FEATURES)}
        table = pa.table(columns | {"target": (x[:, 0] > 0).astype(np.int64)})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=GROUP_ROWS)
    writer.close()


def bare_loop(weights, source, output):
    """What a person writes without Shoal: read, standardize, predict, write."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from shoal.inference.predictor import Predictor

    torch.set_num_threads(1)
    predictor = Predictor.load(weights)
    model, columns = predictor.model, predictor.transform.columns
    mean = np.array([column.mean for column in columns], dtype=np.float32)
    std = np.array([column.std for column in columns], dtype=np.float32)
    since, writer, file = time.perf_counter(), None, pq.ParquetFile(source)
    with torch.no_grad():
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            x = np.stack([table.column(column.name).to_numpy() for column in columns], axis=1)
            shares = torch.cat(
                [model(part).softmax(1) for part in torch.from_numpy((x - mean) / std).split(4096)]
            )
            table = table.append_column("prediction", pa.array(shares.argmax(1).numpy()))
            flat = pa.array(shares.double().numpy().reshape(-1))
            table = table.append_column(
                "probabilities", pa.FixedSizeListArray.from_arrays(flat, shares.shape[1])
            )
            writer = writer or pq.ParquetWriter(output, table.schema)
            writer.write_table(table)
    writer.close()
    return time.perf_counter() - since


def shoal(weights, source, output, workers):
    """The same by `shoal.workflows.predict`; the seconds from the first fragment on, of actors the whole job's."""
    import torch

    from shoal.config.loading import load
    from shoal.inference.predictor import Predictor
    from shoal.workflows.predict import PredictConfig, check_prediction, predict

    torch.set_num_threads(1)
    config = load(PredictConfig, None, [f"scale.num_workers={workers}"])
    checked = check_prediction(Predictor.load(weights), weights, f"parquet:{source}", str(output), config)
    times = [time.perf_counter()]
    predict(checked, config, lambda *_: times.append(time.perf_counter()))
    if not workers:
        return times[-1] - times[0]
    # Until each actor has ended its first fragment, it starts and loads: left out, with the rows of these fragments.
    begun, fragments = times[workers], len(times) - 1
    return (times[-1] - begun) * fragments / (fragments - workers)


def measure(kind, *arguments):
    """Run one of the functions in a process of its own; return what it returned and its peak memory in MiB."""
    done = subprocess.run(
        [sys.executable, __file__, "--", kind, json.dumps([str(one) for one in arguments])],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(kind, arguments):
    weights, source, output, *more = arguments
    if kind == "bare":
        seconds = bare_loop(Path(weights), source, output)
    else:
        seconds = shoal(Path(weights), source, output, int(more[0]))
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def main(rows):
    from saved_model import package

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {
            SMALL: folder / "small.parquet",
            rows: folder / "in.parquet",
            LARGE: folder / "large.parquet",
        }
        for size, path in sizes.items():
            write_input(path, size)
        model = {"width": 128, "depth": 2}
        weights = package(folder / "saved", f"parquet:{sizes[SMALL]}", model=model)
        seconds = {"bare": [], "1 worker": [], "2 workers": []}
        for number in range(ROUNDS):
            order = ["bare", "1 worker", "2 workers"]
            for at, one in enumerate(order + order[::-1]):
                output = folder / f"out-{number}-{at}"
                if one == "bare":
                    took, _ = measure("bare", weights, sizes[rows], output)
                else:
                    took, _ = measure("shoal", weights, sizes[rows], output, 0 if one == "1 worker" else 2)
                seconds[one].append(took)
        for one, took in seconds.items():
            rate = rows / statistics.median(took)
            share = statistics.median(seconds["bare"]) / statistics.median(took)
            print(
                f"{one:<10} {rate:>12,.0f} rows/s  {share:.2f} of the bare loop  {[round(x, 2) for x in took]}"
            )
        for size in (SMALL, LARGE):
            took, peak = measure("shoal", weights, sizes[size], folder / f"memory-{size}", 0)
            print(f"{size:>9,} rows: peak memory {peak:,.0f} MiB, {size / took:,.0f} rows/s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--"]:
        child(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
