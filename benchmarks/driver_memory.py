"""Reads tables of more and more rows by tasks of Ray, and prints the driver's memory: it must not grow with the rows.

    python benchmarks/driver_memory.py [--rows 1000000 10000000]

The table has an id column of whole numbers, one of texts that all differ, and a few of numbers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

MIB = 1 << 20
GROUP_ROWS = 1 << 17


def write_table(path: Path, rows: int) -> None:
    """Write a Parquet file, a row group at a time."""
    random = np.random.default_rng(0)
    writer = None
    for first in range(0, rows, GROUP_ROWS):
        ids = np.arange(first, min(first + GROUP_ROWS, rows))
        numbers = {f"x{number}": random.normal(size=len(ids)) for number in range(2)}
        texts = {"code": pa.array([f"c{number}" for number in ids])}
        table = pa.table({"id": ids} | texts | numbers | {"target": random.integers(0, 2, len(ids))})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def measure(uri: str) -> dict[str, float]:
    """Read, check and fit by tasks of a Ray of its own; returns the rows and how much this process grew, in MiB."""
    from shoal.cluster import ingest, session
    from shoal.runs.config import RunConfig, ScaleConfig
    from shoal.tasks.open_data import open_data, preprocessing_spec

    session.connect(ScaleConfig(num_workers=1), spare_cpus=1)
    config = RunConfig.model_validate({"data": {"source": uri}})
    source = open_data(config.data, config.task, config.seed)
    preprocessing = preprocessing_spec(config.data, config.task, config.seed, source)
    process = psutil.Process()
    before = process.memory_info()
    read = ingest.read_and_inspect(source, preprocessing)
    after = process.memory_info()
    session.disconnect()
    # Pages of the object store are shared, and count for the processes that map them.
    own = (after.rss - after.shared) - (before.rss - before.shared)
    return {"rows": sum(read[1].rows.values()), "mib": own / MIB}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.parquet"
            write_table(path, rows)
            command = [sys.executable, __file__, "--measure", f"parquet:{path}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{found['rows']:>12,} rows: the driver grew by {found['mib']:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
