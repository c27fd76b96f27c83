"""Reads a clean CSV file and a clean Parquet file, as a run does, and prints the rows read per second of CPU time.

    python benchmarks/reading.py [--rows 1000000] [--rounds 5] [--kind csv|parquet] [--other CHECKOUT]

With `--other`, each round reads in turn with this tree and with another checkout; the ratio is taken within a round.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
FLOATS = 7
LIMIT = 0.05  # of the time that another checkout takes

# Each is read: as a whole, in this process, and in chunks, as tasks read a large source.
READ = """
import json, sys, time
try:
    from shoal.data.sources.open import open_source
except ImportError:  # before the sources were a package
    from shoal.data.sources import open_source
import pandas, pyarrow.dataset
uri, how = sys.argv[1:]
for name, module in list(sys.modules.items()):
    if name.startswith("shoal.data") and hasattr(module, "IN_DRIVER_BYTES"):
        module.IN_DRIVER_BYTES = 0 if how == "chunks" else 4 << 30
cpu = time.process_time()
rows = sum(len(next(iter(block.values()))) for part in open_source(uri).parts for block in part.read())
print(json.dumps([rows, time.process_time() - cpu]))
"""


def write_files(folder: Path, rows: int) -> list[str]:
    """Write the same table as CSV and Parquet; returns their URIs."""
    random = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {f"x{number}": random.normal(size=rows) for number in range(FLOATS)}
    columns["count"] = random.integers(0, 100_000, rows)
    columns["target"] = np.array(["red", "blue", "a longer text"])[random.integers(0, 3, rows)]
    table = pa.table(columns)
    arrow_csv.write_csv(table, folder / "a.csv")
    pq.write_table(table, folder / "a.parquet", row_group_size=1 << 17)
    return [f"{kind}:{folder / f'a.{kind}'}" for kind in ("csv", "parquet")]


def cpu_seconds(checkout: Path, uri: str, how: str) -> tuple[int, float]:
    """Read once in a process of its own; returns the rows and the CPU time, without imports."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "platform")}
    command = [sys.executable, "-c", READ, uri, how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rows, seconds = json.loads(done.stdout.splitlines()[-1])
    return rows, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", choices=("csv", "parquet"), help="only this one")
    parser.add_argument("--other", type=Path, help="another checkout, to compare with")
    options = parser.parse_args()
    is_slow = False
    with tempfile.TemporaryDirectory() as folder:
        for uri in write_files(Path(folder), options.rows):
            if options.kind not in (None, uri.partition(":")[0]):
                continue
            size = os.path.getsize(uri.partition(":")[2]) / 1e6
            for how in ("whole", "chunks"):
                own, ratios = [], []
                for _ in range(options.rounds):
                    rows, seconds = cpu_seconds(ROOT, uri, how)
                    assert rows == options.rows
                    own.append(rows / seconds)
                    if options.other:
                        ratios.append(seconds / cpu_seconds(options.other.resolve(), uri, how)[1])
                line = f"{uri.partition(':')[0]:8} {how:7} {size:5.0f} MB  {median(own):12,.0f} rows/s of CPU time"
                if ratios:
                    is_slow |= median(ratios) > 1 + LIMIT
                    line += f"  {median(ratios):5.2f} times the CPU time of {options.other}"
                print(line, flush=True)
    return int(is_slow)


if __name__ == "__main__":
    sys.exit(main())
