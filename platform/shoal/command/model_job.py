"""What the jobs on a model have in common that take MODEL and keys alone, and whose result is a run."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from shoal.config.loading import load
from shoal.config.schema import Section
from shoal.config.secrets import hide
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.job_result import job_name
from shoal.runs.locations import resolve_tracking_uri
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import result_line, unsynced_warning
from shoal.tracking.config import StoreConfig


class Delivered(Protocol):
    """The result of such a job."""

    @property
    def run_folder(self) -> str: ...

    @property
    def is_delivered(self) -> bool | None: ...


Config = TypeVar("Config", bound=Section)
Found = TypeVar("Found", bound=Delivered)


def run_model_job(
    arguments: list[str],
    parser: JobParser,
    schema: type[Config],
    job: str,
    work: Callable[[str, str, Config, str], Found],
    report: Callable[[Found, Config], str],
) -> int:
    """Read the arguments, do the work, and print the report and where the result is.

    Args:
        parser: to which MODEL and the keys are added.
        job: what its runs are called after.
        work: of the model's URI, the run's name, the config and the tracking URI.
    """
    parser.add_argument("model", metavar="MODEL", help="a run folder, runs:/ID, or models:/NAME@ALIAS")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    config = load(schema, None, options.settings)
    track: StoreConfig = config.track  # type: ignore[attr-defined]  # a section of each
    tracking_uri = resolve_tracking_uri(track)
    check_tracking_uri(tracking_uri)
    uri = hide(options.model)
    result = work(uri, job_name(job, uri), config, tracking_uri)
    print(report(result, config))
    if not result.is_delivered:
        print(unsynced_warning(tracking_uri, result.run_folder))
    print(result_line(result.run_folder))
    return 0
