"""Prune, quantize or distil a model: shoal compress MODEL compress.prune=0.5 [compress.quantize=int8]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS.
"""

from shoal.command.model_job import run_model_job
from shoal.compression.config import CompressConfig
from shoal.storage.records import CompressionResult
from shoal.terminal.arguments import JobParser
from shoal.terminal.compression_report import compression_report
from shoal.terminal.progress import ProgressLine
from shoal.workflows.compress import compress


def main(arguments: list[str], program: str = "shoal compress") -> int:
    """Make the variants, measure them beside the model, report and log them."""
    parser = JobParser(
        f"{program} MODEL compress.prune=0.5 [compress.quantize=int8] [dotted.key=value ...]",
        "Make a trained model smaller or faster, and measure what it loses.",
        CompressConfig,
    )
    return run_model_job(arguments, parser, CompressConfig, "compress", _compress, _report)


def _compress(uri: str, name: str, config: CompressConfig, tracking_uri: str) -> CompressionResult:
    with ProgressLine() as progress:
        return compress(uri, name, config, tracking_uri, progress)


def _report(found: CompressionResult, config: CompressConfig) -> str:
    return compression_report(found, config.track.registered_model_name)
