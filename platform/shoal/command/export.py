"""Export a model: shoal export MODEL [export.formats=onnx,torch_export,safetensors]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS.
"""

from shoal.command.model_job import run_model_job
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import export_report
from shoal.workflows.export import ExportConfig, export


def main(arguments: list[str], program: str = "shoal export") -> int:
    """Write the model in each format, compare it with the model, report and log it."""
    parser = JobParser(
        f"{program} MODEL [dotted.key=value ...]",
        "Write a trained model in forms that need no Shoal, once they answer as the model does.",
        ExportConfig,
    )
    return run_model_job(
        arguments, parser, ExportConfig, "export", export, lambda found, _: export_report(found)
    )
