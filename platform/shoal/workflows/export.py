"""Export of a finished model: written by format, compared with the model itself, recorded as a run. Needs no ray."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from shoal.config.schema import Section
from shoal.data.sources.base import Block
from shoal.errors import DataError, ModelError
from shoal.export import folder as folders
from shoal.export import onnx_file, torch_file
from shoal.export.comparison import BATCHES, ROWS, TOLERANCE
from shoal.export.interface import Format
from shoal.export.writer import Writer
from shoal.inference import onnx_module
from shoal.inference.description import WEIGHTS
from shoal.inference.evaluation import first_rows, split_blocks
from shoal.inference.held_out import open_rows, splits_to_try
from shoal.inference.onnx_module import OnnxModule
from shoal.inference.predictor import Predictor
from shoal.inference.rows import as_block
from shoal.registry.model_uri import resolve_model
from shoal.runs.job_result import JobResult, job_dataset, log_job_result, unused_folder
from shoal.storage.records import ExportedFile, ExportResult, Metadata
from shoal.storage.run_folder import EXPORTS, RunFolder
from shoal.tracking.config import StoreConfig

logger = logging.getLogger(__name__)

FORMATS: tuple[Format, ...] = ("onnx", "torch_export", "safetensors")


class ExportFormats(Section):
    formats: tuple[Format, ...] = Field(
        FORMATS, description="of onnx, torch_export, safetensors: e.g. onnx,safetensors"
    )

    @field_validator("formats", mode="before")
    @classmethod
    def _of_text(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("formats")
    @classmethod
    def _are_some(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        if not formats:
            raise ValueError("name at least one format")
        return tuple(name for name in FORMATS if name in formats)


class ExportData(Section):
    source: str | None = Field(
        None, description="rows to compare on; null: those held out in training, else the model's golden ones"
    )


class ExportConfig(Section):
    experiment_name: str = Field("exports", description="of MLflow, and the folder above the run's")
    storage_path: str = Field("runs", description="where the result goes")
    trust_code: bool = Field(
        False,
        description="run the code that the model's description names: its builder, which lies in the model, and the "
        "function of the working directory that returned its data",
    )
    export: ExportFormats = Field(default_factory=ExportFormats)
    data: ExportData = Field(default_factory=ExportData)
    track: StoreConfig = Field(default_factory=StoreConfig)


@dataclass(frozen=True)
class Rows:
    """Raw rows to compare on.

    Attributes:
        blocks: reads them, each time from the start.
    """

    blocks: Callable[[], Iterator[Block]]
    split: str
    source: str


def export(uri: str, name: str, config: ExportConfig, tracking_uri: str) -> ExportResult:
    """Write a model in each format into a run folder, once all of them answer as the model does.

    Args:
        uri: of the model.
        name: of the run.

    Raises:
        UserError: a package is missing, there is no such model, or it has no form in one of the formats.
        VerificationError: an export answers otherwise.
    """
    if "onnx" in config.export.formats:
        onnx_file.check_installed()
    with tempfile.TemporaryDirectory(prefix="shoal-export-") as downloads:
        source = resolve_model(uri, tracking_uri, downloads)
        predictor = Predictor.load(source, trust_code=config.trust_code)
        if isinstance(predictor.model, OnnxModule) and config.export.formats != ("onnx",):
            raise ModelError(
                f"export.formats={','.join(config.export.formats)}: ONNX Runtime computes a model of 8-bit integers, "
                "which has no other form: set export.formats=onnx"
            )
        rows = _rows(predictor, config)
        folder = unused_folder(config.storage_path, config.experiment_name, name)
        with folder.scratch(EXPORTS) as scratch:
            made = scratch / EXPORTS
            with Writer(predictor, source, made, uri, next(rows.blocks())) as writer:
                for one in config.export.formats:
                    writer.write(one)
                count, differences = writer.compare(rows.blocks())
            files = {str(one): _file(made / one, differences[one]) for one in config.export.formats}
            folder.put_folder(made, EXPORTS)
    return _log(folder, config, tracking_uri, uri, predictor, rows, count, files)


def _rows(predictor: Predictor, config: ExportConfig) -> Rows:
    """Return rows that training held out, or the golden ones where their source is not to be read here.

    Raises:
        UserError: the source that the config names cannot be read, or there are no rows at all.
    """
    if config.data.source is not None:
        return _of_source(predictor, config)
    try:
        return _of_source(predictor, config)
    except (DataError, ModelError) as error:
        if predictor.golden is None:
            raise
        logger.warning(
            "compared on the golden rows that the model carries, since no others are there: %s", error
        )
        block = as_block(predictor.golden.rows, predictor.transform)
        return Rows(lambda: iter([block]), "golden", predictor.preprocessing.data.source)


def _of_source(predictor: Predictor, config: ExportConfig) -> Rows:
    other = config.data.source
    source = open_rows(predictor, other, config.trust_code)
    for split in splits_to_try(other):
        blocks = partial(_some, partial(split_blocks, source, predictor.preprocessing, split))
        if next(blocks(), None) is not None:
            return Rows(blocks, split or "all", source.uri)
    raise DataError(f"'{source.uri}' has no held-out rows: name other data with data.source=...")


def _some(blocks: Callable[[], Iterator[Block]]) -> Iterator[Block]:
    """Yield the rows that are compared at the most, and read no further."""
    return (block for block in first_rows(blocks(), ROWS) if len(next(iter(block.values()))))


def _file(folder: Path, difference: float) -> ExportedFile:
    opset = None
    if (folder / onnx_module.FILE).is_file():
        opset = folders.read_interface(folder).opset
    names = [onnx_module.FILE, torch_file.FILE, WEIGHTS]
    return ExportedFile(
        file=f"{EXPORTS}/{folder.name}/{next(name for name in names if (folder / name).is_file())}",
        bytes=sum(path.stat().st_size for path in folder.iterdir()),
        largest_difference=difference,
        opset=opset,
    )


def _log(
    folder: RunFolder,
    config: ExportConfig,
    tracking_uri: str,
    uri: str,
    predictor: Predictor,
    rows: Rows,
    count: int,
    files: dict[str, ExportedFile],
) -> ExportResult:
    """Record a run; its files reach MLflow with it."""
    params = {
        "model": uri,
        "model_digest": predictor.digest,
        "data.source": rows.source,
        "split": rows.split,
        "formats": ",".join(files),
    }
    metadata = Metadata(
        params=params,
        tags={"shoal.job": "export"},
        contexts=["export"],
        dataset=job_dataset(rows.source, str(count)),
    )
    metrics = {"export/rows": float(count)}
    for name, one in files.items():
        metrics[f"export/{name}_largest_difference"] = one.largest_difference
        metrics[f"export/{name}_bytes"] = float(one.bytes)
    result = {
        "model": uri,
        "data_source": rows.source,
        "split": rows.split,
        "rows": count,
        "batches": list(BATCHES),
        "tolerance": TOLERANCE,
        "formats": files,
    }
    found = JobResult(config, metadata, metrics, {}, ExportResult, result)
    return log_job_result(folder, found, config.experiment_name, tracking_uri)
