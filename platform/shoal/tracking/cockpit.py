"""What MLflow's pages say at first glance: names of trials, the runs table best first, descriptions, charts of losses.

It returns texts and names; `shoal.tracking.sync` sends them. The forms of MLflow's addresses and of a shared view are
those of its pages, not of its API: `tests/browser` reads them in a browser.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from shoal.plots.markdown import markdown_table
from shoal.registry.client import connect
from shoal.storage.records import Identity, Metadata, RunsTable, SweepResult, TrainResult
from shoal.storage.run_folder import PICTURES, REPORTS, TRIALS, RunFolder
from shoal.tracking.journal import MetricPoint

PAGE_TAG = "shoal.runs_table"
MODE = "workflowType=machine_learning"  # MLflow's pages are those of GenAI where an address does not say so
VIEW_TAG = "mlflow.sharedViewState."
NOTE_TAG = "mlflow.note.content"
# Charts lie in sections by the part before the slash, in ASCII order: a copy of both losses comes before `best/*`.
SHOWN_FIRST = {"train/loss": "Loss/train", "val/loss": "Loss/validation"}
MOST_TEXT = 24  # characters of a value in a trial's name
MOST_EXPERIMENTS = 10  # whose page is printed
MOST_ROWS = 5  # of a table in a description
OWN_NOTE = "Runs of [Shoal]"  # begins the description of an experiment, which anybody may replace
# Of a sweep, and of a run: the first that is there is shown.
SHOWN_PICTURES = ("heatmap_of_lr_and_width.png", "learning_curves.png", "loss_curve.png")


def run_title(identity: Identity) -> str:
    """Return a run's name in MLflow: of a trial with what varies, `t0002 lr=2.2e-4 width=128`."""
    if not identity.point:
        return identity.name
    parts = [
        f"{short}={value_text(value)}"
        for short, value in zip(short_keys([*identity.point]), identity.point.values(), strict=True)
    ]
    repeat = [f"repeat={identity.repeat}"] if identity.repeat else []
    return " ".join([identity.name, *parts, *repeat])[:250]


def short_keys(keys: Sequence[str]) -> list[str]:
    """Return the last parts of dotted keys; a key whose last part is that of another stays whole."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for short, key in zip(last, keys, strict=True)]


def value_text(value: Any) -> str:
    """Write a value with two digits: 0.00022 as `2.2e-4`."""
    if not isinstance(value, float):
        return str(value)[:MOST_TEXT].replace(" ", "")
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}" if abs(value) >= 100 else f"{value:.2g}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def shown_points(points: Sequence[MetricPoint]) -> list[MetricPoint]:
    """Return points with a copy of each loss, whose charts come first."""
    copies = [replace(point, key=SHOWN_FIRST[point.key]) for point in points if point.key in SHOWN_FIRST]
    return [*points, *copies]


def view_state(table: RunsTable) -> str:
    """Return the view of the runs table that has the compared params and metrics as its first columns, best first."""
    columns = [*(f"params.`{key}`" for key in table.params), *(f"metrics.`{name}`" for name in table.metrics)]
    return json.dumps(
        {
            "orderByKey": f"metrics.`{table.metrics[0]}`",
            "orderByAsc": table.is_ascending,
            "selectedColumns": [*columns, "attributes.`Models`"],
            "columnOrder": columns,
        }
    )


def table_path(table: RunsTable, experiment_id: str) -> str:
    """Return the page of the runs table, below a server's address."""
    return f"#/experiments/{experiment_id}/runs?{MODE}&viewStateShareKey={view_key(table)}"


def view_key(table: RunsTable) -> str:
    """Return the name of a table's view; the same columns have the same."""
    return "shoal-" + hashlib.sha256(view_state(table).encode()).hexdigest()[:8]


def runs_tables(store: str) -> dict[str, str]:
    """Return the page of the runs table of each experiment of a store, by its name; the latest first."""
    found = connect(store).search_experiments(
        order_by=["last_update_time DESC"], max_results=MOST_EXPERIMENTS
    )
    paths = {experiment.name: experiment.tags.get(PAGE_TAG) for experiment in found}
    return {name: path for name, path in paths.items() if path}


def run_note(folder: RunFolder, run_id: str | None, experiment_id: str | None) -> str | None:
    """Return a run's description in Markdown: picture, table, report, model, and the command that makes it again.

    Parts that are not there yet are left out.
    """
    metadata = folder.load(Metadata)
    if metadata is None or metadata.environment is None:  # a trial has its sweep's
        return str(metadata.tags[NOTE_TAG]) if metadata and NOTE_TAG in metadata.tags else None
    page = f"#/experiments/{experiment_id}/runs/{run_id}"
    parts = [str(metadata.tags.get(NOTE_TAG, ""))]
    pictures = [name for name in SHOWN_PICTURES if name in folder.names(PICTURES)]
    if pictures and run_id:
        parts.append(f"![{pictures[0]}](get-artifact?path={PICTURES}%2F{pictures[0]}&run_uuid={run_id})")
    parts.append(_result_table(folder))
    links = [
        f"[{title}]({page}/artifacts/{REPORTS}/{name}?{MODE})"
        for name, title in (("report.html", "report"), ("data.md", "data"))
        if folder.exists(f"{REPORTS}/{name}")
    ]
    if links:
        parts.append("See: " + ", ".join(links))
    parts.append(_registered(folder))
    again = metadata.environment.command
    parts.append(f"Again, or on after an interrupt: {f'`{again}`' if again else 'the same call in Python'}")
    return "\n\n".join(part for part in parts if part)


def _result_table(folder: RunFolder) -> str:
    """Return the best trials of a sweep, or the metrics of a training, as a table."""
    if folder.identity().is_sweep:
        result = folder.load(SweepResult)
        return _trials_table(result) if result else ""
    trained = folder.load(TrainResult)
    metrics = (trained.metrics | trained.best) if trained else {}
    rows = [(name, f"{value:.5g}") for name, value in sorted(metrics.items()) if value is not None]
    return markdown_table(("metric", "value"), rows) if rows else ""


def _trials_table(result: SweepResult) -> str:
    rows = [row for row in result.rows if row.metric is not None][:MOST_ROWS]
    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    cells = [
        (row.name, f"{row.metric:.5g}", *(value_text(row.params.get(key, "")) for key in keys))
        for row in rows
    ]
    return markdown_table(("trial", result.metric, *keys), cells) if rows else ""


def _shortened(param: str) -> str:
    """Return a param of MLflow, a text, with two digits if it is a fraction."""
    try:
        return param if param.lstrip("-").isdigit() else value_text(float(param))
    except ValueError:
        return param


def _registered(folder: RunFolder) -> str:
    """Say which version of the registered model came of a run, or of a sweep's best trial."""
    name = folder.identity().registered_model_name
    tracked = folder.tracked()
    if folder.identity().is_sweep:
        result = folder.load(SweepResult)
        best = result.best.trial if result and result.best else None
        tracked = folder.inner(f"{TRIALS}/{best}").tracked() if best else tracked
    if not name or tracked.model_version is None:
        return ""
    version = f"{name}, version {tracked.model_version}"
    link = f"Registered as [{version}](#/models/{quote(name)}/versions/{tracked.model_version})"
    compared = (tracked.comparison or "").removeprefix(f"{name} version {tracked.model_version} ")
    return f"{link}, which {compared}" if compared else link


def experiment_note(client: Any, experiment_id: str, table: RunsTable) -> str:
    """Return an experiment's description in Markdown: its best runs, and the page that compares all of them."""
    metric, order = table.metrics[0], "ASC" if table.is_ascending else "DESC"
    found = client.search_runs(
        [experiment_id], order_by=[f"metrics.`{metric}` {order}"], max_results=MOST_ROWS
    )
    rows = [
        (
            f"[{run.info.run_name}](#/experiments/{experiment_id}/runs/{run.info.run_id}?{MODE})",
            f"{run.data.metrics[metric]:.5g}",
            *(_shortened(run.data.params.get(key, "")) for key in table.params),
        )
        for run in found
        if metric in run.data.metrics
    ]
    parts = [f"{OWN_NOTE}({table_path(table, experiment_id)}), best first."]
    if rows:
        parts.append(markdown_table(("run", metric, *table.params), rows))
    return "\n\n".join(parts)


def describe_experiment(client: Any, folder: RunFolder, experiment_id: str) -> str | None:
    """Send what a run's experiment lacks: the view of its runs table, its page, the description; return the page."""
    metadata = folder.load(Metadata)
    table = metadata.table if metadata else None
    if table is None:
        return None
    has = client.get_experiment(experiment_id).tags
    page = table_path(table, experiment_id)
    tags = {VIEW_TAG + view_key(table): view_state(table), PAGE_TAG: page}
    if has.get(NOTE_TAG, OWN_NOTE).startswith(OWN_NOTE):
        tags[NOTE_TAG] = experiment_note(client, experiment_id, table)
    for key, text in tags.items():
        if has.get(key) != text:
            client.set_experiment_tag(experiment_id, key, text)
    return page


def run_params(folder: RunFolder, identity: Identity) -> dict[str, str]:
    """Return what the run's config is about, and every key of its point if it is a trial."""
    metadata = folder.load(Metadata)
    params = (identity.point or {}) | (metadata.params if metadata else {})
    return {key: "null" if value is None else str(value) for key, value in params.items()}


def run_tags(folder: RunFolder, run_id: str | None, experiment_id: str | None) -> dict[str, str]:
    """Return a run's tags, with its description."""
    metadata = folder.load(Metadata)
    tags = {key: str(value) for key, value in metadata.tags.items()} if metadata else {}
    note = run_note(folder, run_id, experiment_id)
    return tags | ({NOTE_TAG: note} if note else {})
