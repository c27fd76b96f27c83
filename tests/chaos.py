"""Disturb jobs at random moments: python tests/chaos.py ROUNDS SEED [FILE.json]

Each round is a cell of the matrix, drawn like its moment from the seed. The file receives what was drawn and how it
ended after each round; the table of it is printed at the end.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

from disturbances import DISTURBANCES, Disturbance
from host_site import HOST_DISTURBANCES, HostSite
from object_store import ObjectStore
from rounds import STRATEGIES, Report, Rounds
from running import Server
from sites import Machine, Site

Cell = tuple[str, Disturbance]  # of the matrix: a job and what happens to it


def main(rounds: int, seed: int, record: Path) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then, too
    draw = random.Random(seed)
    reports: list[Report] = []
    why = HostSite.reason()
    print(f"no hosts: {why}" if why else "one machine, and three hosts", flush=True)
    cells = list(itertools.product(STRATEGIES, DISTURBANCES if why else DISTURBANCES + HOST_DISTURBANCES))
    with contextlib.ExitStack() as stack:
        runs = Rounds(open_sites(stack))
        for strategy, disturbance in drawn(cells, rounds, draw):
            reports.append(runs.run(strategy, disturbance, draw))
            save(record, seed, reports)
            print(f"{len(reports)}/{rounds}", line(reports[-1]), reports[-1].problem or "", flush=True)
    print(table(reports))
    return int(not all(report.has_survived for report in reports))


def open_sites(stack: contextlib.ExitStack) -> Callable[[Disturbance], Site]:
    """Return what gives the site of a disturbance; each is made when it is first needed."""

    @cache
    def machine() -> Machine:
        store = ObjectStore()
        stack.callback(store.close)
        os.environ.update(store.env)
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        server = Server(path)
        server.start()
        stack.callback(server.kill)
        return Machine(path, server, store)

    @cache
    def hosts() -> HostSite:
        # A short path, which PostgreSQL's user may go through.
        folder = Path(tempfile.mkdtemp(prefix="shoal-", dir="/tmp"))
        folder.chmod(0o711)
        return stack.enter_context(HostSite(folder))

    return lambda disturbance: hosts() if disturbance.storage == "hosts" else machine()


def drawn(cells: Sequence[Cell], rounds: int, draw: random.Random) -> Iterator[Cell]:
    """Yield so many cells: all of them in a random order, and then all of them in another."""
    left: list[Cell] = []
    for _ in range(rounds):
        left = left or draw.sample(cells, len(cells))
        yield left.pop()


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
