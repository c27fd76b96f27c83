"""Write the reference pages that are made of the sources: python docs/generate.py.

`tests/contracts/test_docs.py` checks that they are current.
"""

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from shoal.compression.config import CompressConfig
from shoal.config.schema import fields, type_name
from shoal.runs.config import RunConfig
from shoal.storage import records
from shoal.tune.config import SweepConfig
from shoal.workflows.coordinate_check import CoordinateConfig
from shoal.workflows.evaluate import EvaluateConfig
from shoal.workflows.explain import ExplainConfig
from shoal.workflows.export import ExportConfig
from shoal.workflows.predict import PredictConfig
from shoal.workflows.promote import PromoteConfig
from shoal.workflows.serve import ServeConfig
from shoal.workflows.transfer import TransferConfig

HERE = Path(__file__).resolve().parent
SECTIONS = {
    "": "The run",
    "data": "data: what is read",
    "model": "model: what is trained",
    "optim": "optim: the optimizer",
    "train": "train: the training",
    "scale": "scale: workers and devices",
    "checkpoint": "checkpoint: what is kept",
    "track": "track: MLflow",
}
RESULTS = {
    "Training": records.TrainResult,
    "Sweep": records.SweepResult,
    "Evaluation": records.EvaluationResult,
    "Batch prediction": records.PredictionResult,
    "Server": records.ServeResult,
    "Promotion": records.PromotionResult,
    "Export": records.ExportResult,
    "Compression": records.CompressionResult,
    "Variant of a compression": records.VariantResult,
    "Explanation": records.ExplainResult,
    "Coordinate check": records.CoordinateCheckResult,
    "Transfer": records.TransferResult,
    "Check of a cluster": records.DoctorResult,
    "Reaping": records.ReapResult,
}
CONFIGURATION = """# Configuration

Every key of a config, with its type, its default and its meaning. The command line, a YAML file and Python take the
same keys: `optim.lr=0.01`, a line `lr: 0.01` below `optim:`, or `shoal.train(config, **{"optim.lr": 0.01})`. A key that
does not exist is refused, and the closest one is named.

This page is made of the code by `python docs/generate.py`.
"""
RESULT = """# result.json

Each job's last line is `result: PATH`. The file is JSON: fields are added, and none is renamed. Fields that a run never
reached are null. In Python the same record is `result.record`. See also the [exit codes](exit-codes.md).

This page is made of the code by `python docs/generate.py`.
"""


def configuration() -> str:
    """Return the page of all keys: those of a training by section, then those that other jobs have besides."""
    keys = dict(fields(RunConfig))
    parts = [CONFIGURATION]
    for section in SECTIONS:  # a section inside another stands on the page of the outer one
        own = {
            key: field for key, field in keys.items() if key.rpartition(".")[0].partition(".")[0] == section
        }
        parts.append(f"## {SECTIONS[section]}\n\n{_key_table(own)}")
    for title, schema in (
        ("tune: a sweep", SweepConfig),
        ("A transfer of the learning rate", TransferConfig),
        ("check: a coordinate check", CoordinateConfig),
        ("An evaluation", EvaluateConfig),
        ("predict: a batch prediction", PredictConfig),
        ("serve: a server", ServeConfig),
        ("promote: a promotion", PromoteConfig),
        ("An export", ExportConfig),
        ("compress: a compression", CompressConfig),
        ("An explanation", ExplainConfig),
    ):
        own = {key: field for key, field in fields(schema) if key not in keys}
        keys |= own
        parts.append(f"## {title}\n\n{_key_table(own)}")
    return "\n".join(parts)


def result() -> str:
    """Return the page of the fields of `result.json`, by job."""
    parts = [RESULT, f"## Every job\n\n{field_table(records.Result, set())}"]
    common = set(records.Result.model_fields)
    parts += [f"## {title}\n\n{field_table(kind, common)}" for title, kind in RESULTS.items()]
    return "\n".join(parts)


def _key_table(keys: dict[str, Any]) -> str:
    rows = []
    for key, field in keys.items():
        default = yaml.safe_dump(field.get_default(call_default_factory=True), default_flow_style=True)
        default = default.removesuffix("\n").removesuffix("\n...")
        kind = type_name(field.annotation).replace("tuple", "list")
        rows.append((f"`{key}`", f"`{kind}`", f"`{default}`", _as_markdown(field.description or "")))
    return _table(("key", "type", "default", "meaning"), rows)


def field_table(kind: type[BaseModel], left_out: set[str]) -> str:
    meanings = dict(_documented(kind))
    rows = [
        (f"`{name}`", _kind_name(field.annotation), meanings.get(name) or field.description or "")
        for name, field in kind.model_fields.items()
        if name not in left_out
    ]
    return _table(("field", "type", "meaning"), rows)


def _documented(kind: type) -> Iterator[tuple[str, str]]:
    """Yield name and meaning of what the `Attributes:` of a class and its bases describe."""
    for owner in reversed(kind.__mro__):
        text = (owner.__doc__ or "").partition("Attributes:\n")[2]
        for names, meaning in re.findall(r"^        (\w[\w, ]*): (.*(?:\n {9,}.*)*)", text, re.MULTILINE):
            for name in names.split(", "):
                yield name, " ".join(meaning.split()).removesuffix(".")


def _kind_name(annotation: Any) -> str:
    """Return a type as JSON has it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind_name(inner[0])
    if origin is Literal:
        return "text"
    if origin in (types.UnionType, Union):
        return " or ".join(_kind_name(one) for one in inner)
    if origin is dict:
        return f"{_kind_name(inner[1])}s by name"
    if origin is list:
        return f"list of {_kind_name(inner[0])}s"
    names = {str: "text", int: "whole number", float: "number", bool: "true/false", types.NoneType: "null"}
    if annotation in names:
        return names[annotation]
    return "object" if isinstance(annotation, type) else "value"


def _as_markdown(text: str) -> str:
    """Mark examples in braces and brackets as code, in which Markdown sees no links."""
    return re.sub(r"\{[^{}]*\}|\[[^\[\]]*\]|\b[a-z_]+\.\w+=\S*\w", lambda found: f"`{found[0]}`", text)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in lines)


PAGES = {
    HERE / "reference" / "configuration.md": configuration,
    HERE / "reference" / "result.md": result,
}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.write_text(page())
