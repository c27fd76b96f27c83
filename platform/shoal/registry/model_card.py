"""The model card of a registered model: what the records of its run say, and nothing else.

`README.md` begins with the block that the Hugging Face hub reads; `README.html` is the same with its picture inside.
Depends on records alone: neither on torch nor on the data.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shoal.plots.markdown import markdown_table
from shoal.storage.folder import Folder
from shoal.storage.records import Metadata, Outcome, VariantResult
from shoal.storage.run_folder import CONFIG, PICTURES, REPORTS, RunFolder
from shoal.tasks.metrics import per_class

README, PAGE, PICTURE = "README.md", "README.html", "confusion_matrix.png"
UNKNOWN = "unknown"  # as the hub calls a licence that nobody stated
MOST_CLASSES, MOST_COLUMNS = 50, 30
FEW = 30  # rows of a class, whose recall says little
MOST_DESCRIBED = 5000  # characters of a version's description in an SQL store
COMPARED = "Compared with the champion"  # a section that promotion adds
# What the hub calls the tasks.
HUB_TASKS = {
    "classification": "tabular-classification",
    "multilabel_classification": "tabular-classification",
    "regression": "tabular-regression",
    "image_classification": "image-classification",
    "sequence_classification": "text-classification",
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
    "speech_recognition": "automatic-speech-recognition",
}
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { border: 1px solid #ccc; padding: .2rem .6rem; text-align: left }
img { max-width: 100% } code, pre { background: #f4f4f4 } pre { padding: .6rem; overflow-x: auto }"""


def write_model_card(folder: RunFolder, name: str, model: Path) -> str:
    """Write the card of a run's model into the folder of the MLflow model; return it.

    Args:
        folder: of the run.
        name: of the registered model.
        model: a local folder. A kill in the middle leaves each file whole.
    """
    into = Folder(str(model))
    card = _Card(folder, name, model).markdown()
    picture = f"{PICTURES}/{PICTURE}"
    if f"({PICTURE})" in card:
        into.write(PICTURE, folder.read(picture))
    write_pages(model, card)
    return card


def write_pages(model: Path, card: str) -> None:
    """Write a card as Markdown and as one page that holds its picture."""
    picture = model / PICTURE
    into = Folder(str(model))
    into.write(README, card.encode())
    into.write(PAGE, as_html(card, picture.read_bytes() if picture.is_file() else None).encode())


def with_section(card: str, title: str, text: str) -> str:
    """Return a card with a section below its first one, instead of one of the same title."""
    head, *sections = card.rstrip().split("\n## ")
    kept = [section.rstrip() + "\n" for section in sections if section.partition("\n")[0] != title]
    return "\n## ".join([head, *kept[:1], f"{title}\n\n{text}\n", *kept[1:]])


def description(card: str) -> str:
    """Return a version's description in MLflow: the first sections of a card, without the hub's block."""
    body = _body(card).replace(f"![Confusion matrix]({PICTURE})\n\n", "")
    end = f"\n\nThe whole card is the artifact `{README}`."
    if len(body) <= MOST_DESCRIBED - len(end):
        return body + end
    cut = body[: MOST_DESCRIBED - len(end)].rpartition("\n\n")[0]
    if cut.count("```") % 2:
        cut = cut.rpartition("```")[0]
    return cut.rstrip() + end


def as_html(card: str, picture: bytes | None) -> str:
    """Return a card as a page without anything outside it. HTML in the names of columns and classes is text."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("js-default").render(_body(card))
    if picture is not None:
        data = base64.b64encode(picture).decode()
        body = body.replace(f'src="{PICTURE}"', f'src="data:image/png;base64,{data}"')
    title = _body(card).partition("\n")[0].removeprefix("# ")
    head = (
        f'<meta charset="utf-8"><title>{MarkdownIt("zero").renderInline(title)}</title><style>{STYLE}</style>'
    )
    return f"<!doctype html>\n<html>\n<head>{head}</head>\n<body>\n{body}</body>\n</html>\n"


def _body(card: str) -> str:
    """Return a card without the block at its top."""
    return card.partition("\n---\n")[2].strip() if card.startswith("---\n") else card.strip()


class _Card:
    """The parts of a card, each from the records of a run; a part without records is left out."""

    def __init__(self, folder: RunFolder, name: str, model: Path) -> None:
        self._folder, self._name = folder, name
        described = next(model.glob("data/*/description.json"), None)  # of the model, which names its classes
        self._described: dict[str, Any] = json.loads(described.read_bytes()) if described else {}
        self._metadata = folder.load(Metadata) or Metadata()
        self._outcome = folder.load(Outcome)
        is_compressed = self._metadata.tags.get("shoal.job") == "compress"
        self._variant = folder.load(VariantResult) if is_compressed else None
        self._config: dict[str, Any] = yaml.safe_load(folder.read(CONFIG)) or {}
        self._task = str(self._get("task", self._metadata.params.get("task", UNKNOWN)))
        dataset = self._metadata.dataset
        self._profile: dict[str, Any] = json.loads(dataset.profile) if dataset and dataset.profile else {}
        self._schema: dict[str, Any] = json.loads(dataset.columns) if dataset and dataset.columns else {}

    def _get(self, key: str, default: Any = None) -> Any:
        """Return a key of the config."""
        found: Any = self._config
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return default if found is None else found

    def markdown(self) -> str:
        sections = {
            "Metrics": self._metrics(),
            "Training data": self._data(),
            "Model": self._model(),
            "Limits": self._limits(),
            "Licence": self._licence(),
            "Use": self._use(),
            "Reproduce": self._reproduce(),
        }
        block = yaml.safe_dump(self._block(), sort_keys=False, allow_unicode=True)
        parts = [f"---\n{block}---\n", f"# {self._name}", self._summary()]
        return (
            "\n\n".join([*parts, *(f"## {title}\n\n{text}" for title, text in sections.items() if text)])
            + "\n"
        )

    def _block(self) -> dict[str, Any]:
        """Return the metadata that the hub reads."""
        hub_task = HUB_TASKS.get(self._task)
        results = [self._result(split, metrics, hub_task or "other") for split, metrics in self._measured()]
        names = sorted({name for _, metrics in self._measured() for name in metrics})
        block: dict[str, Any] = {"license": self._get("track.license", UNKNOWN), "library_name": "shoal"}
        if hub_task:
            block["pipeline_tag"] = hub_task
        block |= {"tags": ["shoal", self._model_name()], "metrics": names}
        return block | {"model-index": [{"name": self._name, "results": results}]}

    def _result(self, split: str, metrics: Mapping[str, float], hub_task: str) -> dict[str, Any]:
        dataset = self._metadata.dataset
        source = dataset.name if dataset else UNKNOWN
        about = {"name": source, "type": source, "split": split}
        if dataset:
            about["revision"] = dataset.digest
        values = [{"name": name, "type": name, "value": round(value, 6)} for name, value in metrics.items()]
        return {"task": {"type": hub_task}, "dataset": about, "metrics": values}

    def _measured(self) -> list[tuple[str, dict[str, float]]]:
        """Return the finite metrics of each held-out split that was measured, by their short names."""
        outcome, variant = self._outcome, self._variant
        splits: Sequence[tuple[str, Mapping[str, float]]] = ()
        if outcome:
            splits = (("validation", outcome.val_metrics), ("test", outcome.test_metrics))
        elif variant:
            metrics = variant.compressed.variant.metrics
            splits = ((variant.split, {f"{variant.split}/{name}": value for name, value in metrics.items()}),)
        found = [
            (
                split,
                {key.partition("/")[2]: value for key, value in metrics.items() if math.isfinite(value)},
            )
            for split, metrics in splits
        ]
        return [(split, metrics) for split, metrics in found if metrics]

    def _model_name(self) -> str:
        return str(self._get("model.name", self._metadata.params.get("model.name", UNKNOWN)))

    def _rows(self, split: str) -> int | None:
        rows: dict[str, int] = self._profile.get("rows", {})
        return rows.get(split)

    def _summary(self) -> str:
        made = f"A `{self._model_name()}` for the task `{self._task}`, trained by Shoal."
        if self._variant:
            made += f" It is `{self._variant.model}` after {self._variant.compressed.method}."
        label, columns = self._schema.get("label"), len(self._schema.get("columns", []))
        if not label:
            return made
        classes = self._profile.get("classes")
        of_classes = f", one of {classes} classes," if classes else ""
        return f"{made} It predicts `{label}`{of_classes} from {columns} columns."

    def _metrics(self) -> str:
        measured = dict(self._measured())
        if not measured:
            return "Nothing was held out: not measured."
        names = list(dict.fromkeys(name for metrics in measured.values() for name in metrics))
        cells = [
            (name, *(f"{m[name]:.6g}" if name in m else "" for m in measured.values())) for name in names
        ]
        rows = ("rows", *(f"{self._rows(split):,}" if self._rows(split) else "" for split in measured))
        parts = [markdown_table(("", *measured), [*cells, rows])]
        verified = self._folder.identity().verified
        if verified:
            parts.append(f"A clean process loaded the saved model and reproduced `{verified.metric}`.")
        outcome = self._outcome
        if outcome and outcome.confusion:
            parts += self._of_classes(outcome.confusion, str(outcome.split))
        return "\n\n".join(parts)

    def _of_classes(self, confusion: Sequence[Sequence[int]], split: str) -> list[str]:
        parts, names, found = [], self._classes(len(confusion)), per_class(confusion)
        columns = [found[key] for key in ("precision", "recall", "support")]
        cells = [
            (name, f"{precision:.4f}", f"{recall:.4f}", f"{support:.0f}")
            for name, precision, recall, support in zip(names, *columns, strict=True)
        ]
        parts.append(f"By class, on the {split} rows:")
        parts.append(markdown_table(("class", "precision", "recall", "rows"), cells[:MOST_CLASSES]))
        if len(cells) > MOST_CLASSES:
            parts.append(f"and {len(cells) - MOST_CLASSES} more classes.")
        if self._folder.exists(f"{PICTURES}/{PICTURE}"):
            parts.append(f"![Confusion matrix]({PICTURE})")
        return parts

    def _classes(self, count: int) -> list[str]:
        found = self._described.get("transform", {}).get("label", {}).get("classes") or range(count)
        return [str(name) for name in found]

    def _data(self) -> str:
        dataset = self._metadata.dataset
        if dataset is None:
            return ""
        lines = [f"- source: `{dataset.name}`", f"- fingerprint of the content: `{dataset.digest}`"]
        rows = self._profile.get("rows", {})
        if rows:
            lines.append("- rows: " + ", ".join(f"{count:,} {split}" for split, count in rows.items()))
        if label := self._schema.get("label"):
            lines.append(f"- label: `{label}`")
        parts = ["\n".join(lines)]
        columns = self._schema.get("columns", [])
        if columns:
            shown = [(column["name"], column["kind"]) for column in columns[:MOST_COLUMNS]]
            parts.append(markdown_table(("column", "kind"), shown))
            if len(columns) > MOST_COLUMNS:
                parts.append(f"and {len(columns) - MOST_COLUMNS} more columns.")
        return "\n\n".join(parts)

    def _model(self) -> str:
        size = self._metadata.model
        lines = [f"- architecture: `{self._model_name()}`"]
        if size:
            trained = (
                f", {size.trained:,} of them trained" if size.trained not in (None, size.parameters) else ""
            )
            lines.append(f"- parameters: {size.parameters:,}{trained}; {size.bytes:,} bytes of weights")
            lines.append(f"- operations of a forward pass: {size.flops_per_sample:,} FLOPs a sample")
        if init := self._get("model.init"):
            lines.append(f"- began from: `{init}`")
        if size and size.not_loaded:
            lines.append(f"- not loaded of it: {size.not_loaded}")
        if outcome := self._outcome:
            lines.append(f"- weights of step {outcome.weights_step} of {outcome.progress.step}")
        return "\n".join(lines)

    def _limits(self) -> str:
        """Return what the records say against trusting the metrics."""
        lines = []
        for split, metrics in self._measured():
            rows = self._rows(split)
            if rows and "accuracy" in metrics and self._profile.get("classes"):
                low, high = wilson(metrics["accuracy"], rows)
                lines.append(
                    f"On {rows:,} {split} rows an accuracy of {metrics['accuracy']:.4f} means {low:.4f} to {high:.4f} "
                    "(95% interval of Wilson)."
                )
        outcome = self._outcome
        if outcome and outcome.confusion:
            lines += self._limits_of_classes(outcome.confusion, str(outcome.split))
        if outcome and not outcome.test_metrics:
            lines.append("There was no test split: the rows that it is measured on chose its weights.")
        if outcome and outcome.sampled_rows:
            lines.append(f"It was verified on the first {outcome.sampled_rows:,} held-out rows, not on all.")
        if outcome and outcome.depends_on_workers:
            lines.append(f"The result depends on the number of workers: {outcome.depends_on_workers}")
        lines.append("One seed was trained: how much another one would change is not known.")
        lines.append("Rows of other sources were not measured.")
        return "\n".join(f"- {line}" for line in [*lines, *self._worth_knowing()])

    def _limits_of_classes(self, confusion: Sequence[Sequence[int]], split: str) -> list[str]:
        names, found = self._classes(len(confusion)), per_class(confusion)
        few = [name for name, support in zip(names, found["support"], strict=True) if support < FEW]
        lines = []
        if few:
            shown = ", ".join(few[:MOST_CLASSES])
            lines.append(f"Classes with fewer than {FEW} {split} rows, whose values say little: {shown}.")
        recall, name = min(zip(found["recall"], names, strict=True))
        return [*lines, f"The lowest recall is that of class `{name}`: {recall:.4f}."]

    def _worth_knowing(self) -> list[str]:
        """Return what the report on the data found odd."""
        path = f"{REPORTS}/data.md"
        if not self._folder.exists(path):
            return []
        section = self._folder.read(path).decode().partition("## Worth knowing\n\n")[2].partition("\n\n##")[0]
        return [line.removeprefix("- ") for line in section.splitlines() if line.startswith("- ")]

    def _licence(self) -> str:
        licence = self._get("track.license", UNKNOWN)
        if licence != UNKNOWN:
            return f"`{licence}`"
        return f"`license: {UNKNOWN}`: nobody stated one; `track.license` of a training does."

    def _use(self) -> str:
        return (
            "```python\nimport mlflow\n\n"
            f'model = mlflow.pyfunc.load_model("models:/{self._name}@champion")\nmodel.predict(rows)\n```'
        )

    def _reproduce(self) -> str:
        environment = self._metadata.environment
        lines = [f"- seed: {self._get('seed', self._metadata.params.get('seed', UNKNOWN))}"]
        if environment:
            git = environment.git
            changed = ", with changes that were not committed" if git and git.get("is_dirty") else ""
            lines.append(f"- commit: `{git['commit']}`{changed}" if git else "- commit: not recorded")
            versions = {
                name: environment.packages[name]
                for name in ("shoal", "torch", "ray", "mlflow")
                if name in environment.packages
            }
            used = "".join(f", {name} {version}" for name, version in versions.items())
            lines.append(f"- Python {environment.python}{used}; {environment.platform}")
            gpus = ", ".join(environment.gpus) or "none"
            lines.append(f"- GPUs: {gpus}; workers: {self._get('scale.num_workers', UNKNOWN)}")
            if environment.command:
                lines.append(f"- command: `{environment.command}`")
        config = self._folder.read(CONFIG).decode().strip()
        return (
            "\n".join(lines) + f"\n\nThe whole config, `shoal train config.yaml`:\n\n```yaml\n{config}\n```"
        )


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Return the 95% interval of a share of rows (Wilson 1927)."""
    z = 1.96
    center = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return center - half, center + half
