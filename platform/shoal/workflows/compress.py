"""Compression of a finished model: variants made, measured beside it, gated, recorded as runs. Needs no ray."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from shoal.compression import gate, int8, magnitude, measure, structured
from shoal.compression.config import CompressConfig, CompressOptions
from shoal.compression.variants import HeldOut, Maker, SavedModel, Variant
from shoal.data.sampler import TEST, VALIDATION
from shoal.errors import DataError
from shoal.export import onnx_file
from shoal.inference.description import DESCRIPTION, Description
from shoal.inference.evaluation import split_blocks
from shoal.inference.held_out import open_rows
from shoal.inference.predictor import Predictor
from shoal.registry.model_uri import resolve_model
from shoal.runs.job_result import unused_folder
from shoal.storage.records import CompressedVariant, CompressionResult
from shoal.storage.run_folder import EXPORTS, MODEL, MODEL_CARD, RunFolder
from shoal.workflows.compression_runs import Subject, log_compression

logger = logging.getLogger(__name__)


def compress(uri: str, name: str, config: CompressConfig, tracking_uri: str) -> CompressionResult:
    """Make the variants that a config asks for, measure them beside the model, and record them.

    Args:
        uri: of the model.
        name: of the run.

    Raises:
        UserError: a package is missing, there is no such model, it cannot be compressed so, or no rows were held out.
        DivergedError: fine-tuning did.
    """
    _check_packages(config.compress)
    with tempfile.TemporaryDirectory(prefix="shoal-compress-") as scratch, ExitStack() as closing:
        source = resolve_model(uri, tracking_uri, scratch)
        predictor = Predictor.load(source, trust_code=config.trust_code)
        model_name = Description.load(source / DESCRIPTION).model.name
        _check_model(predictor, model_name, config.compress)
        rows = _held_out(predictor, config.trust_code)
        subject = Subject(uri, name, model_name, predictor, rows)
        maker = Maker(SavedModel(predictor, source), uri, rows, Path(scratch) / "variants", closing)
        variants = {one.name: _keep(one, subject, config) for one in _variants(maker, config)}
    return log_compression(subject, config, tracking_uri, variants)


def _check_packages(options: CompressOptions) -> None:
    if options.prune is not None and options.method == "structured":
        structured.check_installed()
    if options.quantize == "int8":
        onnx_file.check_installed("compress.quantize=int8", "compress.quantize=bf16")


def _check_model(predictor: Predictor, name: str, options: CompressOptions) -> None:
    """Refuse a model that cannot be compressed as it is asked for, before anything is made."""
    if options.prune is not None:
        kind = structured if options.method == "structured" else magnitude
        kind.check_model(predictor.model, name)
    if options.quantize == "int8":
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


def _variants(maker: Maker, config: CompressConfig) -> Iterator[Variant]:
    """Make what is asked for: pruned, and of that (or of the model) what is quantized."""
    options, of, after = config.compress, maker.original, ""
    if options.prune is not None:
        is_structured = options.method == "structured"
        logger.info(
            "pruning %g of the model, and training it on for %d epochs", options.prune, options.epochs
        )
        pruned = maker.pruned(options.prune, is_structured, options.epochs, config.optim)
        assert pruned.saved is not None
        of, after = pruned.saved, pruned.name
        yield pruned
    if options.quantize == "int8":
        yield maker.as_int8(of, after)
    elif options.quantize == "bf16":
        yield maker.as_bf16(of, after)


def _keep(one: Variant, subject: Subject, config: CompressConfig) -> CompressedVariant:
    """Measure a variant, and put its files into a run folder of its own."""
    logger.info("%s is made (%s): it is measured beside the original", one.name, one.method)
    original, variant, flips = one.measure(subject.rows)
    options, task = config.compress, subject.predictor.task
    metric = gate.compared_metric(original.metrics, task.compared_by)
    reasons = [
        gate.too_bad(
            metric, original.metrics[metric], variant.metrics[metric], options.max_loss_of, task.directions
        ),
        gate.too_slow(original, variant) if one.is_for_speed else None,
    ]
    folder = unused_folder(config.storage_path, config.experiment_name, f"{subject.name}-{one.name}")
    _put(one, folder)
    return CompressedVariant(
        method=one.method,
        original=original,
        variant=variant,
        flips=flips,
        steps=one.steps,
        isa=measure.isa(),
        file=one.file,
        is_export=one.saved is None,
        rejected="; ".join(filter(None, reasons)) or None,
        run_folder=folder.uri,
    )


def _put(one: Variant, folder: RunFolder) -> None:
    where, last = (MODEL, MODEL_CARD) if one.saved else (EXPORTS, None)
    with folder.scratch(where) as scratch:
        shutil.copytree(one.folder, scratch / where)
        folder.put_folder(scratch / where, where, last)
