"""The runs of a compression: one of the job, and one of each variant, which MLflow shows below it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.compression import gate, measure
from shoal.compression.config import CompressConfig
from shoal.compression.limits import Limits, pick
from shoal.compression.variants import HeldOut
from shoal.data.sampler import TEST, VALIDATION
from shoal.errors import VerificationError
from shoal.inference.evaluation import evaluate_on_split
from shoal.inference.predictor import Predictor, weights_folder
from shoal.plots.trade_off import TradeOff, trade_off
from shoal.registry.verify import Verifier, difference
from shoal.runs.finalize import held_out_rows
from shoal.runs.job_result import JobResult, log_job_result, unused_folder
from shoal.runs.mlflow_metadata import training_dataset
from shoal.storage.records import (
    CompressedVariant,
    CompressionResult,
    MeasuredModel,
    Metadata,
    VariantResult,
    Verified,
)
from shoal.storage.run_folder import MODEL, RunFolder
from shoal.tasks.metrics import is_higher_better
from shoal.tracking.sync import PARENT_TAG

SHOWN_BATCH = measure.BATCHES[-1]


@dataclass(frozen=True)
class Subject:
    """What is compressed.

    Attributes:
        uri: where the model was loaded from.
        name: of the job's run.
        model_name: `model.name`.
        rows: that it is measured on.
    """

    uri: str
    name: str
    model_name: str
    predictor: Predictor
    rows: HeldOut


def log_compression(
    subject: Subject,
    config: CompressConfig,
    tracking_uri: str,
    variants: Mapping[str, CompressedVariant],
) -> CompressionResult:
    """Record the job as a run, and each variant as one below it; register those that nothing speaks against.

    Raises:
        VerificationError: a variant measures something else in a clean process.
    """
    folder = unused_folder(config.storage_path, config.experiment_name, subject.name)
    found = _job(subject, config, variants, folder.uri.rpartition("/")[2])
    result = log_job_result(folder, found, config.experiment_name, tracking_uri)
    for name, variant in variants.items():
        own = _of_variant(subject, config, variant, result, name)
        log_job_result(RunFolder(variant.run_folder), own, config.experiment_name, tracking_uri)
    return result


def _job(
    subject: Subject,
    config: CompressConfig,
    variants: Mapping[str, CompressedVariant],
    title: str,
) -> JobResult[CompressionResult]:
    first = next(iter(variants.values()))
    metric = _metric(subject, first)
    rows = int(sum(len(next(iter(block.values()))) for block in subject.rows.blocks()))
    metrics = {
        f"{name}/{key}": value for name, one in variants.items() for key, value in _numbers(one).items()
    }
    points = {f"original ({one.original.runtime})": one.original for one in variants.values()}
    points |= {name: one.variant for name, one in variants.items()}
    picture = trade_off(
        [_point(name, model, metric) for name, model in points.items()],
        metric,
        is_higher_better(metric, subject.predictor.task.directions),
        SHOWN_BATCH,
        title,
    )
    result = {
        "model": subject.uri,
        "data_source": subject.rows.source.uri,
        "split": subject.rows.split,
        "rows": rows,
        "metric": metric,
        "max_loss_of": config.compress.max_loss_of,
        "variants": dict(variants),
        "fits": (fits := config.compress.fits),
        "picked": fits and pick(variants, Limits.parse(fits), metric, subject.predictor.task.directions),
    }
    metadata = _metadata(subject, {"variants": ", ".join(variants)}, {}, rows)
    return JobResult(config, metadata, metrics, {"trade_off": picture}, CompressionResult, result)


def _of_variant(
    subject: Subject,
    config: CompressConfig,
    variant: CompressedVariant,
    job: CompressionResult,
    own_name: str,
) -> JobResult[VariantResult]:
    is_good = not variant.rejected and (job.fits is None or job.picked == own_name)
    tags = {"shoal.parent": job.run_folder}
    tags |= {PARENT_TAG: job.mlflow_run_id} if job.mlflow_run_id else {}
    tags |= {"shoal.rejected": variant.rejected} if variant.rejected else {}
    name = config.track.registered_model_name
    identity = {}
    if name and is_good:
        identity = {
            "registered_model_name": name,
            "verified": _verify(subject, RunFolder(variant.run_folder)),
        }
    result = {
        "model": subject.uri,
        "parent": job.run_folder,
        "data_source": job.data_source,
        "split": job.split,
        "rows": job.rows,
        "metric": job.metric,
        "compressed": variant,
    }
    metadata = _metadata(subject, {"method": variant.method, "isa": variant.isa}, tags, job.rows)
    return JobResult(config, metadata, _numbers(variant), {}, VariantResult, result, identity)


def _verify(subject: Subject, folder: RunFolder) -> Verified:
    """Have a clean process measure a variant on the rows by which versions are compared, as after a training.

    Raises:
        VerificationError: it measures something else than this process.
    """
    predictor, source = subject.predictor, subject.rows.source
    with Verifier() as verifier, folder.scratch(MODEL) as scratch:
        model = folder.get_folder(MODEL, scratch / MODEL)
        variant = Predictor.load(weights_folder(model), trust_code=True)
        for split in (VALIDATION, TEST):
            added = evaluate_on_split(variant, source, predictor.preprocessing, split)
            if added is not None:
                break
        else:
            raise AssertionError("there are held-out rows")
        expected = added.results()
        if differs := difference(verifier.measure(model, split), expected):
            raise VerificationError(differs)
    compared = predictor.task.compared_by if predictor.task.compared_by in expected else "loss"
    return Verified(
        metric=f"{'val' if split == VALIDATION else split}/{compared}",
        value=expected[compared],
        data=source.fingerprint,
        held_out=held_out_rows(predictor.preprocessing, predictor.task.name, split),
    )


def _metadata(subject: Subject, params: dict[str, Any], tags: dict[str, Any], rows: int) -> Metadata:
    predictor, source = subject.predictor, subject.rows.source
    params = {
        "model": subject.uri,
        "model_digest": predictor.digest,
        "model.name": subject.model_name,
        "task": predictor.task.name,
        "data.source": source.uri,
        "split": subject.rows.split,
    } | params
    return Metadata(
        params=params,
        tags={"shoal.job": "compress"} | tags,
        contexts=["compression"],
        dataset=training_dataset(
            source.uri, source.fingerprint, predictor.transform, {subject.rows.split: rows}
        ),
    )


def _metric(subject: Subject, one: CompressedVariant) -> str:
    return gate.compared_metric(one.original.metrics, subject.predictor.task.compared_by)


def _numbers(one: CompressedVariant) -> dict[str, float]:
    """Return what MLflow shows of a variant."""
    before, after = one.original, one.variant
    found = {f"test/{name}": value for name, value in after.metrics.items()}
    found |= {f"change/{name}": value - before.metrics[name] for name, value in after.metrics.items()}
    found |= {
        "compress/bytes": float(after.bytes),
        "compress/bytes_of_original": float(before.bytes),
        "compress/parameters": float(after.parameters),
        "compress/zeros": float(after.zeros),
    }
    optional = {
        "compress/flips": one.flips,
        "compress/attribution_agreement": one.attribution_agreement,
        "compress/flops": after.flops,
        "compress/memory_bytes": after.memory_bytes,
    }
    found |= {name: float(value) for name, value in optional.items() if value is not None}
    for rows, latency in after.latency.items():
        found |= {
            f"compress/p50_ms_of_{rows}": latency.p50_ms,
            f"compress/p99_ms_of_{rows}": latency.p99_ms,
            f"compress/speedup_of_{rows}": one.speedup(rows),
        }
    return found


def _point(name: str, model: MeasuredModel, metric: str) -> TradeOff:
    return TradeOff(name, model.bytes, model.latency[str(SHOWN_BATCH)].p50_ms, model.metrics[metric])
