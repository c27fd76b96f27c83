"""From a finished training to its model: pictures, the pyfunc model, and its verification in a clean process."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from shoal.config.objects import files_of, is_reference, references
from shoal.data.dataset_info import DatasetInfo, blocks_with_splits
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS, TEST, VALIDATION
from shoal.data.sources.base import Block, Source
from shoal.errors import VerificationError
from shoal.inference.description import DESCRIPTION, describe_model
from shoal.inference.detection_pictures import drawn_boxes
from shoal.inference.evaluation import evaluate_on_blocks, first_rows, split_blocks
from shoal.inference.golden import COUNT
from shoal.inference.predictor import Predictor
from shoal.inference.recordings import joined
from shoal.inference.rows import TEXT
from shoal.plots.confusion_matrix import confusion_matrix
from shoal.plots.detection import found_boxes, precision_recall
from shoal.plots.goodput import goodput_bars
from shoal.plots.loss_curve import loss_curve
from shoal.registry.package import save_model
from shoal.registry.verify import Verifier, difference, write_rows
from shoal.runs.callbacks import WORKERS_METRIC
from shoal.runs.config import RunConfig
from shoal.runs.data_notes import draw_data
from shoal.runs.goodput import resizes, spans
from shoal.runs.mlflow_metadata import resize_tags
from shoal.runs.timeline import read_timeline
from shoal.runs.transcripts import write_transcripts
from shoal.storage.records import Goodput, Identity, Metadata, Outcome, Resize, Verified
from shoal.storage.run_folder import CHECKPOINTS, MODEL, MODEL_CARD, PICTURES, SAMPLE, RunFolder
from shoal.tasks.registry import TASKS, TaskName
from shoal.tracking.journal import Journal, all_points
from shoal.training.checkpoint.contents import WEIGHTS, checkpoint_name

SAMPLED = {"max_new_tokens": 400, "temperature": 0.7}
DRAWN = 8  # images with what was found in them
BESIDE = 32  # rows that are compared alone and beside each other

logger = logging.getLogger(__name__)


def package_and_verify(
    folder: RunFolder,
    config: RunConfig,
    source: Source,
    preprocessing: PreprocessingSpec,
    dataset_info: DatasetInfo,
    outcome: Outcome,
) -> bool:
    """Draw the pictures, save the selected weights as a pyfunc model, and have a clean process reproduce their metric.

    A text that a causal language model generates is kept as well, and what a model of speech hears in a few recordings.

    Returns:
        whether it did; False where no rows were held out.

    Raises:
        VerificationError: the model does not load, or measures something else.
    """
    with Verifier() as verifier, folder.scratch(MODEL) as scratch:
        draw_pictures(folder, outcome, dataset_info)
        model = scratch / MODEL
        split = VALIDATION if outcome.val_metrics else TEST
        expected = outcome.val_metrics or outcome.test_metrics
        example = _example(source, preprocessing, split)
        _save(model, folder, config, dataset_info, outcome, example)
        verified = None
        if expected:
            measured = outcome.sampled_metrics or {
                key.partition("/")[2]: value for key, value in expected.items()
            }
            most = outcome.sampled_rows
            own = partial(Predictor.load_own, model.with_name("weights"))
            check_measured(
                verifier.measure(
                    model, split, most, _rows(scratch, config, source, preprocessing, split, most)
                ),
                measured,
                own,
                lambda: first_rows(split_blocks(source, preprocessing, split), most),
            )
            compared = TASKS[config.task].compared_by
            metric = f"{split[:3] if split == VALIDATION else split}/{compared if compared in measured else 'loss'}"
            verified = Verified(
                metric=metric,
                value=expected[metric],
                data=dataset_info.fingerprint,
                held_out=held_out_rows(preprocessing, config.task, split),
            )
        if TASKS[config.task].takes_boxes:
            _draw_boxes(folder, model.with_name("weights"), example)
        if config.task == "causal_lm":
            folder.write(SAMPLE, sample(model.with_name("weights")).encode())
        if TASKS[config.task].takes_recordings:
            own_predictor = Predictor.load_own(model.with_name("weights"))
            write_transcripts(folder, own_predictor, example, f"{folder.identity().name}: {split} split")
        folder.put_folder(model, MODEL, last=MODEL_CARD)
    folder.update(Identity, verified=verified)
    return verified is not None


def check_measured(
    found: dict[str, float],
    measured: dict[str, float],
    load: Callable[[], Predictor],
    blocks: Callable[[], Iterator[Block]],
) -> None:
    """Refuse a model that measures something else in a clean process than in training.

    One whose outputs for a row depend on the rows beside it is measured again here, with the rows that a clean process
    computes on together: in training each worker had its own.

    Args:
        found: by the clean process.
        measured: in training.
        load: loads the saved model here.
        blocks: returns the rows that were measured on.

    Raises:
        VerificationError: it does.
    """
    differs = difference(found, measured)
    if differs is None:
        return
    predictor = load()
    rows = {name: column[:BESIDE] for name, column in next(blocks()).items()}
    together = predictor.outputs(rows)
    alone = [
        predictor.outputs({name: column[row : row + 1] for name, column in rows.items()})
        for row in range(len(together))
    ]
    if not torch.allclose(together, joined(alone), rtol=1e-4, atol=1e-5, equal_nan=True):
        again = evaluate_on_blocks(predictor, blocks())
        if again is not None and difference(found, again.results()) is None:
            logger.warning(
                "%s: the model's outputs for a row depend on the rows beside it, and its metrics on how rows are "
                "grouped",
                differs,
            )
            return
    raise VerificationError(differs)


def _rows(
    scratch: Path,
    config: RunConfig,
    source: Source,
    preprocessing: PreprocessingSpec,
    split: str,
    most: int | None,
) -> Path | None:
    """Write the rows of a split for a clean process, where that process cannot read them: they are of an object."""
    if not is_reference(config.data.source):
        return None
    path = scratch / "rows.pkl"
    write_rows(path, first_rows(split_blocks(source, preprocessing, split), most))
    return path


def held_out_rows(preprocessing: PreprocessingSpec, task: TaskName, split: str) -> str:
    """Return which rows of a source are measured, and what is predicted of them, in words that can be compared."""
    rule, label = preprocessing.split_rule, ", ".join(preprocessing.data.labels)
    predicts = f" of '{label}'" if preprocessing.has_label else ""
    return f"{split} split of seed {rule.seed}, {rule.validation:g} and {rule.test:g}; {task}{predicts}"


def sample(weights: Path) -> str:
    """Return a text that a language model generates without a prompt."""
    written = Predictor.load_own(weights).predict({TEXT: ["\n"]}, SAMPLED)["prediction"]
    return str(written[0])


def _save(
    model: Path,
    folder: RunFolder,
    config: RunConfig,
    dataset_info: DatasetInfo,
    outcome: Outcome,
    example: dict[str, np.ndarray],
) -> None:
    data = model.with_name("weights")
    data.mkdir()
    name = checkpoint_name(outcome.weights_step)
    (data / WEIGHTS).write_bytes(folder.read(f"{CHECKPOINTS}/{name}/{WEIGHTS}"))
    described = describe_model(
        config.model, dataset_info.transform, config.task, config.data, config.seed, config.train
    )
    (data / DESCRIPTION).write_text(described)
    save_model(model, data, example, config.model.name, files_of(references(config.model_dump())))


def draw_pictures(folder: RunFolder, outcome: Outcome, dataset_info: DatasetInfo) -> None:
    """Draw the loss curve, the confusion matrix of a classification, the precision of a detection, and the data."""
    points: dict[str, list[tuple[int, float]]] = {}
    for point in all_points(folder):
        if point.key in ("train/loss", "val/loss", WORKERS_METRIC):
            points.setdefault(point.key, []).append((point.step, point.value))
    sizes = points.pop(WORKERS_METRIC, [])
    title = folder.identity().name
    if points:
        folder.write(f"{PICTURES}/loss_curve.png", loss_curve(points, title, sizes))
    if outcome.confusion is not None:
        counts = np.array(outcome.confusion)
        matrix = confusion_matrix(
            counts, dataset_info.transform.label.classes, f"{title}: {outcome.split} split"
        )
        folder.write(f"{PICTURES}/confusion_matrix.png", matrix)
    if outcome.precision_recall:
        png = precision_recall(outcome.precision_recall, f"{title}: {outcome.split} split")
        folder.write(f"{PICTURES}/precision_recall.png", png)
    draw_data(folder, dataset_info, title)


def show_goodput(folder: RunFolder, attempt: int, step: int, found: Goodput) -> None:
    """Have MLflow show what the seconds of a finished run went to; a picture where it took several attempts."""
    journal = Journal(folder, attempt)
    seconds = {f"goodput/{name}_s": value for name, value in found.seconds.items()}
    journal.log(step, {"goodput/share": found.share, "goodput/wall_s": found.wall_s, **seconds})
    journal.sync()
    if len(found.attempts) > 1:
        marks = read_timeline(folder)
        end_ms = marks[0].at_ms + round(1000 * found.wall_s)
        begun_s = [one.at_ms / 1000 for one in found.attempts]
        title = f"{folder.identity().name}: goodput {found.share:.0%}"
        folder.write(
            f"{PICTURES}/goodput.png", goodput_bars(spans(marks, end_ms), begun_s, found.seconds, title)
        )


def note_resizes(folder: RunFolder) -> list[Resize]:
    """Return the changes of a run's number of workers, and have a tag in MLflow name them."""
    found = resizes(read_timeline(folder))
    if found and (metadata := folder.load(Metadata)):
        folder.save(metadata.extended(tags=resize_tags(found)))
    return found


def _draw_boxes(folder: RunFolder, weights: Path, example: Block) -> None:
    """Draw what the model finds in some images."""
    found = drawn_boxes(
        Predictor.load_own(weights), {name: column[:DRAWN] for name, column in example.items()}
    )
    folder.write(f"{PICTURES}/found_boxes.png", found_boxes(found, folder.identity().name))


def _example(source: Source, preprocessing: PreprocessingSpec, split: str) -> dict[str, np.ndarray]:
    """A few raw rows of a split."""
    for block, number in blocks_with_splits(source, preprocessing):
        found = np.flatnonzero(number == SPLITS.index(split))[:COUNT]
        if len(found) == 0:
            found = np.arange(min(COUNT, len(number)))
        return {name: column[found] for name, column in block.items()}
    raise AssertionError("the data was checked to hold rows")
