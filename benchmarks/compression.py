"""Compressed models beside the models that they were made of; integrated gradients beside Captum called by hand.

`jobs/compress.py` makes the variants and times them in turns with the original, on one thread: an MLP 1000-512-256-10
with 8-bit integers in ONNX Runtime, beside float32 there; and that MLP, a ResNet and a decoder pruned by half,
in torch. How fast 8-bit integers are depends on the CPU: only one with VNNI has a target. Attributions are of the MLP,
in this process, on one thread, for 1,000 of its rows.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness import ROOT, Figure, Report, Row, main, progress, ratios, reference_source, run, scratch
from shoal.explain.attribution import STEPS, attribute_once
from shoal.explain.rows import read_features
from shoal.explain.subject import make_subject
from shoal.inference.evaluation import first_rows, split_blocks
from shoal.inference.predictor import Predictor, weights_folder
from shoal.tasks.open_data import reopen_source

INT8 = "int8"
KINDS = {
    "mlp": ("reference.yaml", f"data.source={reference_source()}", "model.width=512", "train.epochs=2"),
    "resnet": ("resnet.yaml", "model.width=64", "train.max_steps=100"),
    "gpt": (
        "gpt.yaml",
        f"data.source=text:{ROOT}/docs/guides",
        "data.validation_fraction=0.1",
        "data.test_fraction=0.1",
        "train.max_steps=50",
    ),
}
BY_HAND_AT_A_TIME = (None, 4096)  # rows x steps; None: all at once
EXPLAINED_ROWS = 1000
SPREAD = 1.05  # of the medians of two equal models


def measure(repeat: int) -> Report:
    """Train the models once, and compress and attribute in each round."""
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {INT8: [], **{kind: [] for kind in KINDS}}
    took: dict[str, list[float]] = {"shoal": [], "by hand": []}
    with scratch() as folder:
        models = {kind: _trained(kind, folder) for kind in KINDS}
        for number in range(repeat):
            found[INT8].append(_compressed(models["mlp"], f"compress.quantize={INT8}"))
            for kind, model in models.items():
                found[kind].append(_compressed(model, "compress.prune=0.5", "compress.epochs=0"))
            _attribute(models["mlp"], took)
            progress(f"round {number + 1} of {repeat}")
    return _report(found, took)


def _trained(kind: str, folder: Path) -> Path:
    config, *settings = KINDS[kind]
    settings += [
        "scale.num_workers=0",
        f"run_name={kind}",
        "experiment_name=models",
        f"storage_path={folder}",
    ]
    settings += ["track.registered_model_name=null", f"track.tracking_uri=sqlite:///{folder}/mlflow.db"]
    run([sys.executable, "jobs/train.py", f"jobs/configs/{config}", *settings])
    return folder / "models" / kind


def _compressed(model: Path, *settings: str) -> dict[str, Any]:
    """Return the record of the one variant that `jobs/compress.py` makes."""
    folder = model.parents[1]
    store = [f"storage_path={folder}", f"track.tracking_uri=sqlite:///{folder}/mlflow.db"]
    said = run([sys.executable, "jobs/compress.py", str(model), *settings, *store])
    (result,) = [line.removeprefix("result: ") for line in said.splitlines() if line.startswith("result: ")]
    (variant,) = json.loads(Path(result).read_text())["variants"].values()
    return variant  # type: ignore[no-any-return]


def _attribute(model: Path, took: dict[str, list[float]]) -> None:
    """Time attributions of the same rows, either of the two first in turn."""
    from captum.attr import IntegratedGradients

    predictor = Predictor.load(weights_folder(model / "model"))
    source = reopen_source(predictor.preprocessing, predictor.task.name)
    blocks = first_rows(split_blocks(source, predictor.preprocessing, "test"), EXPLAINED_ROWS)
    features = read_features(predictor, blocks)
    assert features is not None
    inputs = features.inputs
    assert len(inputs) == EXPLAINED_ROWS
    subject = make_subject(predictor, inputs)
    subject.rows_at_a_time  # noqa: B018  (measured once for a model)
    targets, baseline = subject.run(inputs).argmax(dim=1), inputs.mean(dim=0, keepdim=True)
    by_hand = IntegratedGradients(predictor.model)

    def shoal() -> None:
        attribute_once(subject, "integrated_gradients", inputs, targets, STEPS)

    def hand(at_a_time: int | None) -> Callable[[], None]:
        return lambda: by_hand.attribute(
            inputs, baseline, target=targets, n_steps=STEPS, internal_batch_size=at_a_time
        )

    calls = [("shoal", shoal), *(("by hand", hand(size)) for size in BY_HAND_AT_A_TIME)]
    seconds: dict[str, list[float]] = {name: [] for name in took}
    for order in (calls, calls[::-1]):
        for name, call in order:
            since = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - since)
    for name, each in seconds.items():
        took[name].append(min(each))


def _report(found: dict[str, list[dict[str, Any]]], took: dict[str, list[float]]) -> Report:
    int8 = found[INT8]
    bytes_ = [one["variant"]["bytes"] / one["original"]["bytes"] for one in int8]
    faster = {rows: _speedups(int8, rows) for rows in ("1", "64")}
    lost = [
        100 * (one["original"]["metrics"]["accuracy"] - one["variant"]["metrics"]["accuracy"]) for one in int8
    ]
    rows = [
        Row("int8: bytes, of float32's", bytes_, "x"),
        Row("int8: faster, batch 64", faster["64"], "x"),
        Row("int8: faster, batch 1", faster["1"], "x"),
        Row("int8: accuracy lost", lost, "points"),
    ]
    figures = [
        Figure("int8: bytes", rows[0].median, 0.27, is_at_least=False),
        Figure("int8: accuracy lost", rows[3].median, 0.5, is_at_least=False, unit="points"),
    ]
    if has_vnni := int8[0]["isa"] != "none":
        figures.append(Figure("int8: faster than float32, batch 64", rows[1].median, 2.0, is_at_least=True))
    for kind in KINDS:
        many, one = (
            Row(f"half of {kind}: faster, batch {size}", _speedups(found[kind], size), "x")
            for size in ("64", "1")
        )
        rows += [many, one]
        figures.append(Figure(many.name, many.median, 1.5, is_at_least=True))
        figures.append(Figure(one.name, one.median, 1 / SPREAD, is_at_least=True))
    rows.append(
        Row("attributions: Captum's time by hand / ours", ratios(took["by hand"], took["shoal"]), "x")
    )
    figures.append(Figure("integrated gradients: as fast as by hand", rows[-1].median, 0.9, is_at_least=True))
    notes = [
        f"8-bit products of this CPU: {int8[0]['isa']}"
        + ("" if has_vnni else ", so that their speed has no target")
    ]
    return Report("compressed models and explanations", rows, figures, notes)


def _speedups(variants: list[dict[str, Any]], rows: str) -> list[float]:
    return [
        one["original"]["latency"][rows]["p50_ms"] / one["variant"]["latency"][rows]["p50_ms"]
        for one in variants
    ]


if __name__ == "__main__":
    main(measure, repeat=3)
