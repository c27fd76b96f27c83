"""Compression of a finished model: variants made, measured beside it, gated, recorded as runs. Needs no ray."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from shoal.compression import distillation, gate, int8, magnitude, measure, structured
from shoal.compression.config import CompressConfig, CompressOptions, StudentSize
from shoal.compression.fine_tuning import FineTuning
from shoal.compression.variants import (
    HeldOut,
    Maker,
    SavedModel,
    Variant,
    joined,
    pruned_name,
    student_name,
)
from shoal.data.sampler import TEST, VALIDATION
from shoal.errors import DataError, ModelError
from shoal.export import onnx_file
from shoal.inference.description import DESCRIPTION, Description
from shoal.inference.evaluation import split_blocks
from shoal.inference.held_out import open_rows
from shoal.inference.onnx_module import check_is_torch
from shoal.inference.predictor import Predictor
from shoal.registry.model_uri import resolve_model
from shoal.runs.job_result import unused_folders
from shoal.storage.records import CompressedVariant, CompressionResult, VariantState
from shoal.storage.run_folder import CHECKPOINTS, MODEL, MODEL_CARD, RunFolder
from shoal.tracking.status import Listener, ignore
from shoal.workflows.compression_runs import Subject, log_compression

logger = logging.getLogger(__name__)


def compress(
    uri: str, name: str, config: CompressConfig, tracking_uri: str, listen: Listener = ignore
) -> CompressionResult:
    """Make the variants that a config asks for, measure them beside the model, and record them.

    A job that was killed goes on where it was: fine-tuning from its newest checkpoint, after finished variants.

    Args:
        uri: of the model.
        name: of the run.
        listen: receives how far fine-tuning is.

    Raises:
        UserError: a package is missing, there is no such model, it cannot be compressed so, or no rows were held out.
        DivergedError: fine-tuning did.
    """
    _check_packages(config.compress)
    with tempfile.TemporaryDirectory(prefix="shoal-compress-") as scratch:
        source = resolve_model(uri, tracking_uri, scratch)
        predictor = Predictor.load(source, trust_code=config.trust_code)
        description = Description.load(source / DESCRIPTION)
        rows = _held_out(predictor, config.trust_code)
        _check_model(predictor, description, config.compress, rows)
        subject = Subject(uri, name, description.model.name, predictor, rows)
        maker = Maker(SavedModel(predictor, source), rows, Path(scratch) / "variants")
        variants = dict(variants_of(maker, subject, config, listen))
    return log_compression(subject, config, tracking_uri, variants)


def _check_packages(options: CompressOptions) -> None:
    if options.prune and options.method == "structured":
        structured.check_installed()
    if "int8" in options.quantize:
        onnx_file.check_installed("compress.quantize=int8", "compress.quantize=bf16")


def _check_model(
    predictor: Predictor, description: Description, options: CompressOptions, rows: HeldOut
) -> None:
    """Refuse a model that cannot be compressed as it is asked for, before anything is made."""
    name = description.model.name
    check_is_torch(predictor.model, "is not compressed again")
    if predictor.task.takes_boxes:
        raise ModelError(
            f"a model of task={predictor.task.name} is not compressed: its outputs are maps of cells, which agreement "
            "and students do not know; train a narrower one (model.width)"
        )
    students = distillation.check_model(predictor, description, options) if options.distill.sizes else []
    if options.prune and options.method == "structured":
        example = predictor.inputs(rows.few)
        for model in students or [predictor.model]:
            has_own_loss = description.objective.loss is not None
            structured.check_model(model, name, options.prune, example, are_all_read=has_own_loss)
    elif options.prune:
        magnitude.check_model(predictor.model, name)
    if "int8" in options.quantize:
        int8.check_model(predictor, name)


def _held_out(predictor: Predictor, trust_code: bool) -> HeldOut:
    """Return the test rows, or the validation rows where there are none.

    Raises:
        UserError: their source cannot be read here, or holds neither.
    """
    source = open_rows(predictor, None, trust_code)
    for split in (TEST, VALIDATION):
        blocks = partial(split_blocks, source, predictor.preprocessing, split)
        if split not in predictor.transform.label.unlabelled and next(blocks(), None) is not None:
            return HeldOut(source, blocks, split)
    raise DataError(
        f"'{source.uri}' has no held-out rows, on which variants are measured: train with data.test_fraction=0.1"
    )


@dataclass(frozen=True)
class Step:
    """One way to compress a model.

    Attributes:
        name: what the variant is called, after the name of what it is made of.
        make: from a model, its name and the run folder of the variant.
        is_followed: whether the next one is made from this variant.
    """

    name: str
    make: Callable[[SavedModel, str, RunFolder], Variant]
    is_followed: bool = False


def steps_of(maker: Maker, config: CompressConfig, listen: Listener) -> list[list[Step]]:
    """Return in which steps variants are made: each of a list from each model that the list before has made."""
    options, is_structured = config.compress, config.compress.method == "structured"

    def student(size: StudentSize) -> Step:
        def make(of: SavedModel, after: str, folder: RunFolder) -> Variant:
            tuning = FineTuning(options.distill_epochs, config.optim, folder, listen)
            return maker.student(of, after, size, tuning)

        return Step(student_name(size), make)

    def pruned(ratio: float) -> Step:
        def make(of: SavedModel, after: str, folder: RunFolder) -> Variant:
            tuning = FineTuning(options.epochs, config.optim, folder, listen)
            return maker.pruned(of, after, ratio, is_structured, tuning)

        return Step(pruned_name(ratio, is_structured), make, is_followed=options.gradual)

    def quantized(kind: str) -> Step:
        def make(of: SavedModel, after: str, folder: RunFolder) -> Variant:
            return maker.as_int8(of, after) if kind == "int8" else maker.stored_narrow(of, kind, after)

        return Step(kind, make)

    found = (
        [student(size) for size in options.distill.sizes],
        [pruned(ratio) for ratio in options.prune],
        [quantized(kind) for kind in options.quantize],
    )
    return [steps for steps in found if steps]


def variants_of(
    maker: Maker, subject: Subject, config: CompressConfig, listen: Listener
) -> Iterator[tuple[str, CompressedVariant]]:
    """Make what is asked for: students, of these (or of the model) what is pruned, of that what is quantized.

    What a killed job of the same model, rows and config has finished is taken as it is.
    """

    def made(steps: list[list[Step]], of: SavedModel, after: str) -> Iterator[tuple[str, CompressedVariant]]:
        now, later = steps[0], steps[1:]
        for step in now:
            name = joined(after, step.name)
            with _claimed(subject, config, name) as (folder, found):
                if found is None:
                    logger.info("%s is being made", name)
                    found = _keep(step.make(of, after, folder), subject, config, folder)
                kept = maker.reloaded(folder, f"{name}-kept") if later or step.is_followed else of
            yield name, found
            if later:
                yield from made(later, kept, name)
            if step.is_followed:
                of = replace(kept, unpruned=of.unpruned or of.predictor.model)

    return made(steps_of(maker, config, listen), maker.original, "")


@contextmanager
def _claimed(
    subject: Subject, config: CompressConfig, name: str
) -> Iterator[tuple[RunFolder, CompressedVariant | None]]:
    """Hold the run folder of a variant; yield it, and the variant if a killed job of the same has finished it.

    It is the first folder that no other job works on, and that holds nothing of a job on something else.
    """
    made_of = {
        "model": subject.predictor.digest,
        "rows": subject.rows.source.fingerprint,
        "compress": config.compress.model_dump(mode="json", exclude={"fits"}),
        "optim": config.optim.model_dump(mode="json"),
    }
    job = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    for folder in unused_folders(config.storage_path, config.experiment_name, f"{subject.name}-{name}"):
        state = folder.load(VariantState) or VariantState(job=job)
        if state.job == job and folder.watch_holder() is None:
            break
    folder.create()
    folder.acquire_lease()
    try:
        folder.clear_leftovers()
        folder.save(state)
        if state.compressed:
            logger.info("%s was finished by an earlier job: %s", name, folder.uri)
        yield folder, state.compressed
    finally:
        folder.release_lease()


def _keep(one: Variant, subject: Subject, config: CompressConfig, folder: RunFolder) -> CompressedVariant:
    """Measure a variant, and put its files into its run folder."""
    logger.info("%s is made (%s): it is measured beside the original", one.name, one.method)
    original, variant, flips, agreement = one.measure(subject.rows)
    options, task = config.compress, subject.predictor.task
    metric = gate.compared_metric(original.metrics, task.compared_by)
    reasons = [
        gate.too_bad(
            metric, original.metrics[metric], variant.metrics[metric], options.max_loss_of, task.directions
        ),
        gate.too_slow(original, variant) if one.is_for_speed else None,
    ]
    _put(one, folder)
    found = CompressedVariant(
        method=one.method,
        original=original,
        variant=variant,
        flips=flips,
        attribution_agreement=agreement,
        steps=one.steps,
        isa=measure.isa(),
        file=one.file,
        rejected="; ".join(filter(None, reasons)) or None,
        run_folder=folder.uri,
    )
    folder.update(VariantState, compressed=found)
    folder.delete(CHECKPOINTS)
    return found


def _put(one: Variant, folder: RunFolder) -> None:
    folder.delete(MODEL)  # of a job that was killed before the variant was measured
    with folder.scratch(MODEL) as scratch:
        shutil.copytree(one.folder, scratch / MODEL)
        folder.put_folder(scratch / MODEL, MODEL, MODEL_CARD)
