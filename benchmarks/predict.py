"""Batch prediction beside a bare PyTorch loop over the same parquet.

Each reads row groups, standardizes, predicts and writes all columns with the label and the probabilities. The order of
the three turns from round to round; one process with one thread each, then two Ray actors with one thread each. Then
the peak memory of predicting 100 thousand and 2 million rows.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from harness import ROOT, Figure, Report, Row, environment, main, progress, ratios, run, scratch
from quiet import Quiet, Timing
from shoal.config.loading import load
from shoal.inference.predictor import Predictor
from shoal.workflows.predict import PredictConfig, check_prediction, predict

FEATURES, GROUP_ROWS = 20, 1 << 16
SMALL, ROWS, LARGE = 100_000, 1_000_000, 2_000_000
CHILD = "--child"


def write_input(path: Path, rows: int) -> None:
    """Write rows of `FEATURES` numbers and a label, group by group."""
    draw = np.random.default_rng(0)
    fields = [(f"x{number}", pa.float32()) for number in range(FEATURES)]
    schema = pa.schema([*fields, ("target", pa.int64())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, GROUP_ROWS):
            x = draw.normal(size=(min(GROUP_ROWS, rows - first), FEATURES)).astype(np.float32)
            columns = [*x.T, (x[:, 0] > 0).astype(np.int64)]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=GROUP_ROWS)


def bare_loop(weights: Path, source: Path, output: Path) -> float:
    """What a person writes without Shoal: read, standardize, predict, write; return its seconds."""
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
            parts = torch.from_numpy((x - mean) / std).split(4096)
            shares = torch.cat([model(part).softmax(1) for part in parts])
            table = table.append_column("prediction", pa.array(shares.argmax(1).numpy()))
            flat = pa.array(shares.double().numpy().reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(flat, shares.shape[1])
            table = table.append_column("probabilities", lists)
            writer = writer or pq.ParquetWriter(output, table.schema)
            writer.write_table(table)
    assert writer is not None
    writer.close()
    return time.perf_counter() - since


def shoal(weights: Path, source: Path, output: Path, workers: int) -> float:
    """The same by `shoal.workflows.predict`; the seconds from the first fragment on, of actors the whole job's."""
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


def peak_mib() -> float:
    """Return the peak memory of this process; `ru_maxrss` would be at least that of the process which started it."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) / 1024


def child(weights: str, source: str, output: str, workers: str) -> None:
    """Print the seconds of one of both and its peak memory in MiB; no workers given: the bare loop's."""
    paths = Path(weights), Path(source), Path(output)
    seconds = shoal(*paths, int(workers)) if workers else bare_loop(*paths)
    print(json.dumps([seconds, peak_mib()]))


def in_child(weights: Path, source: Path, output: Path, workers: str) -> tuple[float, float]:
    """Run one of both in a process of its own; return its seconds and its peak memory in MiB."""
    command = [sys.executable, __file__, CHILD, str(weights), str(source), str(output), workers]
    seconds, peak = json.loads(run(command, environment(PYTHONPATH=str(ROOT / "platform"))).splitlines()[-1])
    return seconds, peak


def measure(repeat: int) -> Report:
    """Measure all three in turning order, then the memory."""
    sys.path.insert(0, str(ROOT / "tests"))
    from saved_model import package

    quiet = Quiet()
    contestants = {"bare loop": "", "Shoal, 1 worker": "0", "Shoal, 2 workers": "2"}
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    with scratch() as folder:
        sources = {rows: folder / f"{rows}.parquet" for rows in (SMALL, ROWS, LARGE)}
        for rows, path in sources.items():
            write_input(path, rows)
        weights = package(folder / "saved", f"parquet:{sources[SMALL]}", model={"width": 128, "depth": 2})
        for number in range(repeat):
            for name in contestants if number % 2 == 0 else reversed(contestants):

                def once(name: str = name, output: Path = folder / f"{number}-{name}") -> Timing:
                    since = time.time()
                    seconds, _ = in_child(weights, sources[ROWS], output, contestants[name])
                    return Timing(ROWS / seconds, since, time.time())

                rates[name].append(quiet.value(once))
                progress(f"round {number + 1}/{repeat}: {name} {rates[name][-1]:,.0f} rows/s")
        peaks = {
            rows: in_child(weights, sources[rows], folder / f"memory-{rows}", "0")[1]
            for rows in (SMALL, LARGE)
        }
    one = ratios(rates["Shoal, 1 worker"], rates["bare loop"])
    two = ratios(rates["Shoal, 2 workers"], rates["Shoal, 1 worker"])
    figures = [
        Figure("1 worker, of a bare loop's rows per second", Row("", one, "").median, 0.8, is_at_least=True),
        Figure("2 workers against 1", Row("", two, "").median, 1.6, is_at_least=True),
        Figure("peak memory of 20 times the rows", peaks[LARGE] / peaks[SMALL], 1.1, is_at_least=False),
    ]
    rows_of = [Row(name, values, "rows/s") for name, values in rates.items()]
    rows_of += [Row(f"peak memory, {rows:,} rows", [peak], "MiB") for rows, peak in peaks.items()]
    return Report("Batch prediction over parquet", rows_of, figures, [quiet.note])


if __name__ == "__main__":
    if sys.argv[1:2] == [CHILD]:
        child(*sys.argv[2:])
    else:
        main(measure, repeat=4)
