"""What `shoal doctor` and `shoal reap` print, as text."""

from collections.abc import Sequence

from shoal.storage.records import LEVELS, DoctorResult, Finding, ReapResult
from shoal.terminal.reports import result_line
from shoal.terminal.tables import table

MOST_VALUE = 80  # characters of a value in the table


def doctor_report(result: DoctorResult) -> str:
    """Return a line for each problem, worst first, and a table with a row for each check."""
    problems = [finding_line(finding) for finding in result.findings if finding.level != "ok"]
    fatal, warnings = (
        sum(finding.level == level for finding in result.findings) for level in ("fatal", "warning")
    )
    counts = f"{fatal} fatal, {warnings} warning{'s' * (warnings != 1)}"
    nodes = len(result.nodes)
    summary = f"{counts}; {nodes} node{'s' * (nodes != 1)} in {result.seconds:.0f} s"
    return "\n".join([*problems, _check_table(result.findings), summary, result_line(result.run_folder)])


def finding_line(finding: Finding) -> str:
    """Return level, place, value, rule and remedy in one line."""
    where = f" {finding.where}" if finding.where else ""
    line = f"{finding.level}: {finding.check}{where}: {finding.value}: {finding.rule}: {finding.remedy}"
    return " ".join(line.split())


def _check_table(findings: Sequence[Finding]) -> str:
    rows = [("check", "level", "where", "value")]
    for check in sorted({finding.check for finding in findings}):
        own = [finding for finding in findings if finding.check == check]
        worst = max(own, key=lambda finding: LEVELS.index(finding.level))
        alike = [finding for finding in own if finding.level == worst.level]
        where = worst.where if len(alike) == 1 else f"{worst.where} and {len(alike) - 1} more"
        value = worst.value if len(worst.value) <= MOST_VALUE else f"{worst.value[: MOST_VALUE - 3]}..."
        rows.append((check, worst.level, where, value))
    return table(rows, is_text=True)


def reap_report(result: ReapResult) -> str:
    """Return a line for each run that was said to be running, and what was done."""
    rows = [
        table(
            [("run", "outcome", "why"), *((run.run, run.outcome, run.why) for run in result.runs)],
            is_text=True,
        )
    ]
    closed = sum(run.outcome == "closed" for run in result.runs)
    summary = f"{closed} of {len(result.runs)} runs that were said to be running are closed"
    return "\n".join([*(rows if result.runs else []), summary, result_line(result.run_folder)])
