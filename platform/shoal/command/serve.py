"""Serve models over HTTP: shoal serve MODEL [MODEL ...] [serve.port=8000] [serve.replicas=2]

MODEL is a run folder, runs:/ID, models:/NAME@ALIAS or models:/NAME/VERSION.
"""

from shoal.config.loading import load
from shoal.config.secrets import hide
from shoal.errors import ConfigError
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.locations import resolve_tracking_uri
from shoal.serving.models import Models
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import result_line, unsynced_warning
from shoal.workflows import serve as workflow


def main(arguments: list[str], program: str = "shoal serve") -> int:
    """Load the models, answer requests until a signal comes, log what was served."""
    parser = JobParser(
        f"{program} MODEL [MODEL ...] [dotted.key=value ...]",
        "Answer predictions over HTTP, until Ctrl-C. The token that clients must send is the environment variable "
        "SHOAL_SERVE_TOKEN.",
        workflow.ServeConfig,
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="+", help="a run folder, runs:/ID, models:/NAME@ALIAS, and key=value"
    )
    options = parser.parse_args(arguments)
    models = [hide(text) for text in options.model if "=" not in text]
    if not models:
        raise ConfigError("there is no MODEL: name a run folder, runs:/ID or models:/NAME@ALIAS")
    config = load(workflow.ServeConfig, None, [text for text in options.model if "=" in text])
    tracking_uri = resolve_tracking_uri(config.track)
    check_tracking_uri(tracking_uri)
    served = workflow.serve(models, config, tracking_uri, _announce)
    result = workflow.log_served(served, models, config, tracking_uri)
    if not result.is_delivered:
        print(unsynced_warning(tracking_uri, result.run_folder))
    print(f"{served.metrics.statuses.total()} requests, {served.metrics.rows} rows")
    print(result_line(result.run_folder))
    return 0


def _announce(address: str, models: Models) -> None:
    for name, version in models.identities.items():
        digest = f", {version.digest}" if version.digest else ""
        print(f"{name}: {version.signature.task}, version {version.number}{digest}")
    print(f"serving at {address}  (try it: {address}/, routes: {address}/docs; Ctrl-C ends it)", flush=True)
