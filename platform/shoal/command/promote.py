"""Make a version of a registered model its champion: shoal promote NAME [--candidate VERSION] [--rollback]"""

from shoal.config.loading import load
from shoal.errors import ConfigError, VerificationError
from shoal.registry.preflight import check_tracking_uri
from shoal.registry.versions import Versions
from shoal.runs.locations import resolve_tracking_uri
from shoal.storage.records import PromotionResult
from shoal.terminal.arguments import JobParser
from shoal.terminal.reports import promotion_report, result_line, unsynced_warning
from shoal.workflows.promote import (
    PromoteConfig,
    carry_out,
    log_promotion,
    log_rollback,
    new_folder,
    plan_promotion,
    roll_back,
)


def main(arguments: list[str], program: str = "shoal promote") -> int:
    """Compare a version with the champion, move the alias if it wins or ties, report and record it."""
    parser = JobParser(
        f"{program} NAME [--candidate VERSION] [--rollback] [--dry-run] [dotted.key=value ...]",
        "Compare a version of a registered model with its champion on the same held-out rows, and make it champion if "
        "it wins, or ties within promote.margin. Exit code: 0 if it does, 1 if it loses.",
        PromoteConfig,
    )
    parser.add_argument("name", metavar="NAME", help="of the registered model")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--candidate", metavar="VERSION", help="the version; without it the newest one")
    parser.add_argument("--rollback", action="store_true", help="go back to the champion before this one")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and change nothing")
    options = parser.parse_intermixed_args(arguments)  # settings after options too
    config = load(PromoteConfig, None, options.settings)
    if options.rollback and options.candidate:
        raise ConfigError("--rollback goes back to the champion before: leave out --candidate")
    tracking_uri = resolve_tracking_uri(config.track)
    check_tracking_uri(tracking_uri)
    versions = Versions(options.name, tracking_uri)
    if options.rollback:
        return _roll_back(versions, config, options.dry_run)
    return _promote(versions, options.candidate, config, options.dry_run)


def _promote(versions: Versions, candidate: str | None, config: PromoteConfig, is_dry: bool) -> int:
    planned = plan_promotion(versions, candidate, config)
    print(promotion_report(planned))
    wins = planned.outcome != "loses"
    if is_dry:
        print(
            f"nothing was changed: version {planned.candidate if wins else planned.champion} would be champion"
        )
    else:
        folder = new_folder(versions.name, config)
        carry_out(versions, planned, folder.uri.rpartition("/")[2])
        _end(log_promotion(folder, versions, planned, config))
    if not wins:
        raise VerificationError(f"version {planned.candidate} of '{versions.name}' loses: {planned.why}")
    return 0


def _roll_back(versions: Versions, config: PromoteConfig, is_dry: bool) -> int:
    folder = new_folder(versions.name, config)
    before, champion = roll_back(versions, folder.uri.rpartition("/")[2], is_dry)
    if is_dry:
        print(f"nothing was changed: version {before} would be champion again, instead of version {champion}")
        return 0
    print(f"version {before} of {versions.name} is champion again, instead of version {champion}")
    _end(log_rollback(folder, versions, before, champion, config))
    return 0


def _end(result: PromotionResult) -> None:
    if not result.is_delivered:
        print(unsynced_warning(str(result.tracking_uri), result.run_folder))
    print(result_line(result.run_folder))
