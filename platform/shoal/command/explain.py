"""Explain a model: shoal explain MODEL [explain.rows=3,17] [explain.target=CLASS]

MODEL is a run folder, runs:/ID or models:/NAME@ALIAS.
"""

from shoal.command.model_job import run_model_job
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import explain_report
from shoal.workflows.explain import ExplainConfig, explain


def main(arguments: list[str], program: str = "shoal explain") -> int:
    """Attribute what the model answers to columns, pixels or tokens, check, report and log it."""
    parser = JobParser(
        f"{program} MODEL [dotted.key=value ...]",
        "Show which columns, pixels or tokens a trained model answers by, and whether that can be believed.",
        ExplainConfig,
    )
    return run_model_job(
        arguments, parser, ExplainConfig, "explain", explain, lambda found, _: explain_report(found)
    )
