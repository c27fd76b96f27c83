"""Disturb jobs at random moments: python tests/chaos.py ROUNDS SEED [FILE.json]

Each round is a cell of the matrix, drawn like its moment from the seed. The file receives what was drawn and how it
ended after each round; the table of it is printed at the end.
"""

import itertools
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from disturbances import DISTURBANCES
from object_store import ObjectStore
from rounds import STRATEGIES, Report, Rounds
from running import Server

CELLS = tuple(itertools.product(STRATEGIES, DISTURBANCES))


def main(rounds: int, seed: int, record: Path) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    draw = random.Random(seed)
    store, reports = ObjectStore(), list[Report]()
    os.environ.update(store.env)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        server = Server(Path(folder))
        server.start()
        try:
            runs = Rounds(Path(folder), server, store)
            for strategy, disturbance in drawn(rounds, draw):
                reports.append(runs.run(strategy, disturbance, draw))
                save(record, seed, reports)
                print(f"{len(reports)}/{rounds}", line(reports[-1]), reports[-1].problem or "", flush=True)
        finally:
            server.kill()
            store.close()
    print(table(reports))
    return int(not all(report.has_survived for report in reports))


def drawn(rounds: int, draw: random.Random):
    """Yield so many cells: all of them in a random order, and then all of them in another."""
    cells: list = []
    for _ in range(rounds):
        cells = cells or draw.sample(CELLS, len(CELLS))
        yield cells.pop()


def save(record: Path, seed: int, reports: Sequence[Report]) -> None:
    survived = sum(report.has_survived for report in reports)
    kept = {"seed": seed, "rounds": len(reports), "survived": survived}
    record.write_text(json.dumps({**kept, "schedule": [asdict(report) for report in reports]}, indent=1))


def line(report: Report) -> str:
    codes = " ".join(map(str, report.codes))
    end = "survived" if report.has_survived else "lost"
    return f"| {report.strategy} | {report.disturbance} | {report.when} | {codes} | {report.seconds:.0f} | {end} |"


def table(reports: Sequence[Report]) -> str:
    head = "| job | disturbance | moment | exit codes | seconds | |\n|---|---|---|---|---|---|"
    return "\n".join([head, *map(line, reports)])


if __name__ == "__main__":
    rounds, seed, *rest = sys.argv[1:]
    sys.exit(main(int(rounds), int(seed), Path(rest[0] if rest else f"chaos-{seed}.json")))
