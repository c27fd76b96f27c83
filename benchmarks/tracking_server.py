"""Measures the tracking server of deploy/tracking under the metrics of a sweep, and its pages with 10,000 runs.

64 trials, each a process of its own, make ten steps a second; a step waits 0.1 s, as for a GPU, and then writes ten
metrics into the trial's journal as the training loop does. The sweep's own tracking process sends them to MLflow on
PostgreSQL, on the same machine. What this takes of a trial is the time of its steps beside those of as many trials that
record nothing, while no server is asked; the slowest trial counts. In another such minute server and database are
killed, and started again 20 s later. Every point is then counted in PostgreSQL.

Of the 10,000 runs with ten params and ten metrics MLflow writes one, and PostgreSQL copies its rows.
"""

import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from harness import ROOT, Figure, Report, Row, main, progress, scratch
from mlflow_server import MlflowServer, copy_run, mlflow_server
from shoal.runs.heartbeat import Heartbeat
from shoal.storage.records import Identity, Metadata, RunsTable
from shoal.storage.run_folder import TRIALS, RunFolder
from shoal.tracking import cockpit
from shoal.tracking.background import TrackerProcess
from shoal.tracking.journal import Journal, NoJournal
from shoal.tracking.sync import PARENT_TAG, Ending

TRIALS_AT_ONCE, STEP_S, METRICS = 64, 0.1, 10
KEYS = ("train/loss", *(f"train/metric_{number}" for number in range(1, METRICS)))
STORED_KEYS = METRICS + 1  # the loss has a copy, whose chart comes first
SLOWER, AWAY_S, ALL_IN_S = 5.0, 20.0, 300.0
RUNS, PAGE, PAGES = 10_000, 100, 60

POINTS = """
select m.run_uuid, count(*), count(distinct (m.key, m.step)) filter (where m.value = m.step and m.step between 1 and %s)
from metrics m join tags t on t.run_uuid = m.run_uuid and t.key = %s and t.value = %s group by m.run_uuid
"""


@dataclass(frozen=True)
class Paced:
    """What a trial came to.

    Attributes:
        appending_s: seconds in the journal, of all steps; and of the slowest.
    """

    steps: int
    seconds: float
    appending_s: float
    slowest_s: float

    @property
    def step_s(self) -> float:
        return self.seconds / self.steps


def pace(uri: str | None, begin_s: float, seconds: float) -> Paced:
    """Make steps for so long, of a trial with a folder or of one that records nothing."""
    journal = Journal(RunFolder(uri), 1) if uri else NoJournal()
    time.sleep(max(0.0, begin_s - time.time()))
    since = time.perf_counter()
    step, appending_s, slowest_s = 0, 0.0, 0.0
    while time.perf_counter() - since < seconds:
        time.sleep(STEP_S)
        step += 1
        began = time.perf_counter()
        journal.log(step, dict.fromkeys(KEYS, float(step)))
        journal.flush()
        took = time.perf_counter() - began
        appending_s, slowest_s = appending_s + took, max(slowest_s, took)
    ended = time.perf_counter() - since
    journal.sync()
    return Paced(step, ended, appending_s, slowest_s)


def run_trials(
    uris: list[str | None], seconds: float, meanwhile: Callable[[], None] = lambda: None
) -> list[Paced]:
    """Run trials side by side, each in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    assert isinstance(context, ForkServerContext)
    context.set_forkserver_preload(["tracking_server"])  # imported once, and not by each process
    with context.Pool(len(uris)) as pool:
        begin_s = time.time() + 5
        results = pool.starmap_async(pace, [(uri, begin_s, seconds) for uri in uris], chunksize=1)
        time.sleep(max(0.0, begin_s - time.time()))
        meanwhile()
        return results.get()


def make_sweep(folder: RunFolder, uri: str) -> list[RunFolder]:
    """Make the folder of a sweep and of its trials, as the sweep's driver does."""
    folder.create()
    folder.create_identity(name="load", experiment="load", is_sweep=True, tracking_uri=uri)
    folder.save(Metadata(tags={"shoal.job": "tune"}))
    folder.acquire_lease()
    trials = []
    for number in range(TRIALS_AT_ONCE):
        trial = folder.inner(f"{TRIALS}/t{number:04d}")
        trial.create_identity(name=f"t{number:04d}", experiment="load", point={"optim.lr": number / 1000})
        trial.save(Metadata(params={"optim.lr": number / 1000}))
        trials.append(trial)
    return trials


@dataclass(frozen=True)
class Load:
    """What became of the points of a sweep.

    Attributes:
        arrived_s: seconds from the last step to the last point in the database.
        closed_s: seconds that ending all runs took after that.
    """

    trials: list[Paced]
    lost: int
    twice: int
    arrived_s: float
    closed_s: float


def load(path: Path, server: MlflowServer, seconds: float, meanwhile: Callable[[], None]) -> Load:
    """Run a sweep's trials against the server."""
    folder = RunFolder(str(path))
    trials = make_sweep(folder, server.uri)
    heartbeat, tracker = Heartbeat(folder), TrackerProcess(folder)
    heartbeat.start()
    tracker.start()
    paced = run_trials([trial.uri for trial in trials], seconds, meanwhile)
    since = time.monotonic()
    steps = [one.steps for one in paced]
    while count_points(server) < sum(steps) * STORED_KEYS and time.monotonic() - since < ALL_IN_S:
        time.sleep(0.5)
    arrived_s, since = time.monotonic() - since, time.monotonic()
    end_ms = int(time.time() * 1000)
    for trial in trials:
        trial.update(Identity, status="FINISHED", end_ms=end_ms)
    heartbeat.set_status("FINISHED")
    if not tracker.close(Ending("FINISHED", None, end_ms)):
        progress(f"not all is in MLflow: {tracker.problem}")
    heartbeat.close()
    return Load(paced, *stored(server, folder, trials, steps), arrived_s, closed_s=time.monotonic() - since)


def count_points(server: MlflowServer) -> int:
    """Return how many points a new server has; cheaper than `stored`."""
    with server.database() as database:
        return int(database.execute("select count(*) from metrics").fetchone()[0])


def stored(
    server: MlflowServer, folder: RunFolder, trials: list[RunFolder], steps: list[int]
) -> tuple[int, int]:
    """Return how many points PostgreSQL lacks, with their values, and how many it has besides."""
    with server.database() as database:
        found = database.execute(POINTS, (max(steps), PARENT_TAG, folder.tracked().run_id)).fetchall()
    counts = {run: (total, right) for run, total, right in found}
    lost = twice = 0
    for trial, made in zip(trials, steps, strict=True):
        total, right = counts.get(trial.tracked().run_id, (0, 0))
        lost += made * STORED_KEYS - right
        twice += total - right
    return lost, twice


def outage(server: MlflowServer, seconds: float) -> None:
    """Kill server and database in the middle, for 20 s or a third of the time."""
    away_s = min(AWAY_S, seconds / 3)
    time.sleep((seconds - away_s) / 2)
    server.kill()
    time.sleep(away_s)
    server.start()


def slower(paced: list[Paced], alone: list[Paced]) -> float:
    """Return by how many percent the slowest trial's steps take longer than those of trials that record nothing."""
    return 100 * (max(one.step_s for one in paced) / median(one.step_s for one in alone) - 1)


def fill(server: MlflowServer) -> RunsTable:
    """Write the runs, and the view of their table that Shoal gives an experiment."""
    from mlflow.entities import Metric, Param, RunTag

    from shoal.registry.client import connect

    client = connect(server.uri)
    experiment = client.create_experiment("many")
    table = RunsTable(params=["param_0", "param_1"], metrics=["metric_0"], is_ascending=True)
    client.set_experiment_tag(
        experiment, cockpit.VIEW_TAG + cockpit.view_key(table), cockpit.view_state(table)
    )
    run = client.create_run(
        experiment, run_name="t00000", tags={"shoal.run": "t00000", "mlflow.user": "shoal"}
    )
    now_ms = int(time.time() * 1000)
    client.log_batch(
        run.info.run_id,
        [Metric(f"metric_{number}", 0.5, now_ms, 1) for number in range(10)],
        [Param(f"param_{number}", str(number / 10)) for number in range(10)],
        [RunTag("mlflow.source.name", "shoal")],
    )
    client.set_terminated(run.info.run_id)
    copy_run(server, run.info.run_id, RUNS - 1)
    return table


def searches(server: MlflowServer, table: RunsTable) -> dict[str, list[float]]:
    """Return the seconds of each page of `search_runs`, by what is asked."""
    from shoal.registry.client import connect

    client = connect(server.uri)
    experiment = client.get_experiment_by_name("many").experiment_id
    asked: dict[str, dict[str, Any]] = {
        "by time": {"order_by": ["attributes.start_time DESC"]},
        "by a metric": {"order_by": [f"metrics.`{table.metrics[0]}` ASC"]},
        "by a metric, filtered": {
            "order_by": [f"metrics.`{table.metrics[0]}` ASC"],
            "filter_string": "metrics.metric_0 < 0.9 and params.param_1 = '0.1'",
        },
    }
    return {name: list(pages(client, experiment, **more)) for name, more in asked.items()}


def pages(client: Any, experiment: str, **more: Any) -> Iterator[float]:
    """Turn pages of 100 runs, and yield the seconds of each."""
    token = None
    for _ in range(PAGES):
        began = time.perf_counter()
        found = client.search_runs([experiment], max_results=PAGE, page_token=token, **more)
        yield time.perf_counter() - began
        assert len(found) == PAGE
        assert len(found[0].data.params) == len(found[0].data.metrics) == 10
        token = found.token


def first_table(server: MlflowServer, table: RunsTable) -> float:
    """Return the seconds from opening the experiment's page in a new browser until runs with a metric are shown."""
    from browser import Browser
    from shoal.registry.client import connect

    experiment = connect(server.uri).get_experiment_by_name("many").experiment_id
    with Browser() as browser:
        browser.open(f"{server.uri.replace('://', f'://admin:{server.password}@')}/version")  # log in
        since = time.perf_counter()
        browser.open(f"{server.uri}/{cockpit.table_path(table, experiment)}")
        browser.wait(has_rows, "the table is shown", every_s=0.05)
        return time.perf_counter() - since


def has_rows(text: str) -> bool:
    """Whether a page's text has a table of runs with values: names, and below `metric_0` numbers."""
    return bool(re.search(r"^t\d{5}$", text, re.MULTILINE) and re.search(r"^0\.\d+$", text, re.MULTILINE))


def p95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1]


def measure_load(repeat: int, seconds: float) -> tuple[list[Row], list[Figure]]:
    """Measure what is recorded, without and with the outage, in turn with trials that record nothing."""
    found: dict[str, list[tuple[Load, float]]] = {"": [], ", killed for 20 s": []}
    for number in range(repeat):
        for name, loads in found.items():
            alone = run_trials([None] * TRIALS_AT_ONCE, seconds / 3)
            with scratch() as folder, mlflow_server() as server:
                meanwhile = partial(outage, server, seconds) if name else partial(time.sleep, 0)
                one = load(folder / "run", server, seconds, meanwhile)
            loads.append((one, slower(one.trials, alone)))
            progress(
                f"round {number + 1}/{repeat}{name}: {loads[-1][1]:.2f}% slower, {one.lost} lost, {one.twice} twice, "
                f"all in after {one.arrived_s:.1f} s, closed {one.closed_s:.1f} s later"
            )
    rows, figures = [], []
    for name, loads in found.items():
        appends = [
            1e6 * sum(t.appending_s for t in one.trials) / sum(t.steps for t in one.trials)
            for one, _ in loads
        ]
        rates = [METRICS * sum(t.steps / t.seconds for t in one.trials) for one, _ in loads]
        slowed = Row(f"slowest trial, slower by{name}", [percent for _, percent in loads], "%")
        rows += [
            Row(f"metrics written{name}", rates, "1/s"),
            slowed,
            Row(f"a step's append{name}", appends, "us"),
        ]
        rows.append(
            Row(
                f"last point in PostgreSQL, after the last step{name}",
                [one.arrived_s for one, _ in loads],
                "s",
            )
        )
        rows.append(Row(f"all runs ended, after that{name}", [one.closed_s for one, _ in loads], "s"))
        figures += [
            Figure(slowed.name, max(slowed.values), SLOWER, is_at_least=False, unit="%"),
            Figure(f"points lost{name}", sum(one.lost for one, _ in loads), 0, is_at_least=False, unit=""),
            Figure(f"points twice{name}", sum(one.twice for one, _ in loads), 0, is_at_least=False, unit=""),
        ]
    return rows, figures


def measure_pages(repeat: int) -> tuple[list[Row], list[Figure]]:
    """Measure the pages of 10,000 runs."""
    sys.path.insert(0, str(ROOT / "tests"))
    shown: list[float] = []
    rows: dict[str, list[float]] = {}
    with mlflow_server() as server:
        table = fill(server)
        for number in range(repeat):
            for name, seconds in searches(server, table).items():
                rows.setdefault(name, []).append(p95(seconds))
            shown.append(first_table(server, table))
            progress(f"round {number + 1}/{repeat}: first table after {shown[-1]:.1f} s")
    found = [Row(f"100 of 10,000 runs {name}, p95", values, "s") for name, values in rows.items()]
    browser = Row("first table of 10,000 runs in a browser", shown, "s")
    figures = [Figure(row.name, row.median, 1.0, is_at_least=False, unit="s") for row in found]
    figures.append(Figure(browser.name, browser.median, 5.0, is_at_least=False, unit="s"))
    return [*found, browser], figures


def measure(repeat: int, seconds: float) -> Report:
    rows, figures = measure_load(repeat, seconds)
    more_rows, more_figures = measure_pages(repeat)
    return Report("The tracking server", [*rows, *more_rows], [*figures, *more_figures])


if __name__ == "__main__":
    main(measure, repeat=1, seconds=60.0)
