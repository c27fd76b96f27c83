"""From a finished training to its model: pictures, the pyfunc model, and its proof in a clean process."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from shoal.checkpoint import WEIGHTS
from shoal.cluster.config import RunConfig
from shoal.data.order import SPLITS, TEST, VALIDATION
from shoal.data.prepare import Prepared, Recipe, number_blocks
from shoal.data.sources import Source
from shoal.predict import DESCRIPTION, TEXT, Predictor, describe
from shoal.runfolder import IDENTITY, MODEL, PICTURES, SAMPLE, RunFolder
from shoal.track.journal import JournalReader
from shoal.track.pictures import confusion_matrix, loss_curve
from shoal.track.registry import save_model
from shoal.track.verify import Verifier

SAMPLED = {"max_new_tokens": 400, "temperature": 0.7}


def deliver(
    folder: RunFolder,
    config: RunConfig,
    source: Source,
    recipe: Recipe,
    prepared: Prepared,
    outcome: dict[str, Any],
) -> bool:
    """Draw the pictures, save the final weights as a pyfunc model, and have a clean process reproduce their metric.

    Of a causal language model, what it writes is kept as well.

    Returns:
        whether it did; False where no rows were held out to measure on.

    Raises:
        VerificationError: the model does not load, or measures something else.
    """
    with Verifier() as verifier, tempfile.TemporaryDirectory() as scratch:
        draw(folder, outcome, prepared)
        model = Path(scratch) / MODEL
        expected, split = outcome.get("val_metrics"), VALIDATION
        if expected is None:
            expected, split = outcome.get("test_metrics"), TEST
        _save(model, folder, config, prepared, outcome, _example(source, recipe, split))
        verified = None
        if expected:
            verifier.verify(model, split, {key.partition("/")[2]: value for key, value in expected.items()})
            metric = f"{split[:3] if split == VALIDATION else split}/loss"
            verified = {"metric": metric, "value": expected[metric], "data": prepared.fingerprint}
        if config.task == "causal_lm":
            folder.write(SAMPLE, sample(model.with_name("weights")).encode())
        folder.put_folder(model, MODEL)
    folder.update_json(IDENTITY, verified=verified)
    return verified is not None


def sample(weights: Path) -> str:
    """Return what a language model writes when it is given nothing."""
    written = Predictor.load(weights).predict({TEXT: ["\n"]}, SAMPLED)["prediction"]
    return str(written[0])


def _save(
    model: Path,
    folder: RunFolder,
    config: RunConfig,
    prepared: Prepared,
    outcome: dict[str, Any],
    example: dict[str, np.ndarray],
) -> None:
    data = model.with_name("weights")
    data.mkdir()
    name = f"step-{outcome['progress']['step']:06d}"
    (data / WEIGHTS).write_bytes(folder.read(f"checkpoints/{name}/{WEIGHTS}"))
    described = describe(config.model, prepared.transform, config.task, config.data, config.seed)
    (data / DESCRIPTION).write_text(described)
    save_model(model, data, example, config.model.name)


def draw(folder: RunFolder, outcome: dict[str, Any], prepared: Prepared) -> None:
    """Draw the loss curve, and the confusion matrix of a classification."""
    points: dict[str, list[tuple[int, float]]] = {}
    for point in JournalReader(folder).read():
        points.setdefault(point.key, []).append((point.step, point.value))
    curves = {str(name): points[name] for name in ("train/loss", "val/loss") if name in points}
    title = folder.identity()["name"]
    if curves:
        folder.write(f"{PICTURES}/loss_curve.png", loss_curve(curves, title))
    if "confusion" in outcome:
        counts = np.array(outcome["confusion"])
        matrix = confusion_matrix(
            counts, prepared.transform.label.classes, f"{title}: {outcome['split']} split"
        )
        folder.write(f"{PICTURES}/confusion_matrix.png", matrix)


def _example(source: Source, recipe: Recipe, split: str) -> dict[str, np.ndarray]:
    """A few raw rows of a split."""
    for block, number in number_blocks(source, recipe):
        found = np.flatnonzero(number == SPLITS.index(split))[:5]
        if len(found) == 0:
            found = np.arange(min(5, len(number)))
        return {name: column[found] for name, column in block.items()}
    raise AssertionError("the data was checked to hold rows")
