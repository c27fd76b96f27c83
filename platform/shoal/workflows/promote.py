"""Promotion of a version of a registered model: it and the champion on the same rows, a paired test, the alias moved.

Recorded as a run of its own, and in the model's ledger. Needs no ray.
"""

import math
import tempfile
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import Field

from shoal.config.schema import Section
from shoal.data.sampler import TEST, VALIDATION
from shoal.errors import ConfigError, ModelError, nearest
from shoal.plots.markdown import markdown_table
from shoal.registry.compare import Comparison, Request, Slice, compare
from shoal.registry.ledger import CHAMPION, champion_before, now
from shoal.registry.significance import Bootstrap, Mcnemar
from shoal.registry.versions import Versions
from shoal.runs.job_result import JobResult, job_name, log_job_result, unused_folder
from shoal.storage.records import DatasetRecord, LedgerEntry, Metadata, PromotionResult
from shoal.storage.run_folder import RunFolder
from shoal.tracking.config import StoreConfig

SIGNIFICANT = 0.05  # the p-value below which a better candidate wins
MOST_SLICES = 10


class PromoteSection(Section):
    metric: str | None = Field(
        None,
        description="that decides; null: accuracy of classes, else the one that trainings compare versions by",
    )
    margin: float = Field(
        0.005, ge=0, description="how much worse still is a tie, as a share of the champion's value"
    )


class PromoteConfig(Section):
    experiment_name: str = Field("promotions", description="of MLflow, and the folder above the run's")
    storage_path: str = Field("runs", description="where the result goes")
    trust_code: bool = Field(
        False, description="run the code of both models, each in a process of its own, as for an evaluation"
    )
    promote: PromoteSection = Field(default_factory=PromoteSection)
    track: StoreConfig = Field(default_factory=StoreConfig)


@dataclass(frozen=True)
class Promotion:
    """What is to be done with two versions of a registered model, and why.

    Attributes:
        candidate, champion: versions.
        data: digest of the candidate's data.
        outcome: the candidate `wins`: it is better, and by more than chance; `ties`: it is not worse by more than the
            margin; `loses`.
        why: in words.
        metric: that decides.
        test: of the difference.
        slices: the groups of rows on which the candidate is worst, worst first.
    """

    candidate: str
    champion: str
    data: str
    comparison: Comparison
    outcome: Literal["wins", "ties", "loses"]
    why: str
    metric: str
    test: Mcnemar | Bootstrap
    slices: list[Slice]

    @property
    def values(self) -> tuple[float, float]:
        """What candidate and champion measure."""
        ours, theirs = self.comparison.candidate, self.comparison.champion
        return ours.metrics[self.metric], theirs.metrics[self.metric]


def plan_promotion(versions: Versions, version: str | None, config: PromoteConfig) -> Promotion:
    """Compare a version with the champion and decide; nothing is changed.

    Args:
        version: None: the newest one.

    Raises:
        ModelError: they cannot be compared; the message says why.
        ConfigError: they have no such metric.
    """
    champion = versions.champion
    candidate = versions.candidate(version, champion)
    number = str(candidate.version)
    with tempfile.TemporaryDirectory(prefix="shoal-promote-") as scratch:
        ours, theirs = (str(versions.weights(one, scratch)) for one in (number, champion))
        request = Request(ours, theirs, [TEST, VALIDATION], "trusted" if config.trust_code else "no")
        try:
            comparison = compare(request)
        except ModelError as error:
            raise ModelError(
                f"version {number} of '{versions.name}' cannot be compared with its champion, version {champion}: "
                f"{error}"
            ) from error
    metric = config.promote.metric or comparison.usual_metric
    if metric not in comparison.metrics:
        raise ConfigError(
            f"promote.metric={metric}{nearest(metric, comparison.metrics)}: both versions can be compared by "
            f"{', '.join(comparison.metrics)}"
        )
    outcome, why, test = decide(comparison, metric, config.promote.margin)
    slices = comparison.slices(metric, MOST_SLICES)
    return Promotion(number, champion, candidate.tags["data"], comparison, outcome, why, metric, test, slices)


def decide(
    comparison: Comparison, metric: str, margin: float
) -> tuple[Literal["wins", "ties", "loses"], str, Mcnemar | Bootstrap]:
    """Return whether the candidate wins, ties or loses, why, and the test of the difference."""
    candidate, champion = comparison.candidate.metrics[metric], comparison.champion.metrics[metric]
    test = comparison.test(metric)
    worse_by = comparison.worse_by(metric, candidate, champion)
    allowed = margin * abs(champion)
    words = (
        f"{metric} {candidate:.6g} against {champion:.6g} on {comparison.candidate.rows} "
        f"{comparison.candidate.split} rows, {test_text(test)}"
    )
    if worse_by < 0 and test.p_value < SIGNIFICANT:
        return "wins", words, test
    if worse_by <= allowed:  # never of what is no number
        side = (
            "better, but not by more than chance" if worse_by < 0 else "equal" if worse_by == 0 else "worse"
        )
        return "ties", f"{words}: {side}; promote.margin={margin:g} allows {allowed:.3g} worse", test
    return "loses", f"{words}: worse by more than promote.margin={margin:g}, {allowed:.3g}, allows", test


def test_text(test: Mcnemar | Bootstrap) -> str:
    """Return a test's result in words."""
    if isinstance(test, Mcnemar):
        return (
            f"of which {test.only_candidate} only the candidate has right and {test.only_champion} only the champion "
            f"(McNemar p={test.p_value:.3g})"
        )
    return (
        f"95% interval of the difference {test.low:.3g} to {test.high:.3g} (bootstrap p={test.p_value:.3g})"
    )


def carry_out(versions: Versions, promotion: Promotion, run: str) -> bool:
    """Make the candidate champion if it wins or ties; return whether.

    Args:
        run: the name of the run that is to record it.

    Raises:
        ModelError: another process moved the alias meanwhile.
    """
    versions.check_champion(promotion.champion)
    text = (
        f"{versions.name} version {promotion.candidate} {promotion.outcome} against version {promotion.champion}, the "
        f"champion: {promotion.why}"
    )
    if promotion.outcome == "loses":
        versions.record_comparison(promotion.candidate, text, note(promotion))
        return False
    value, champions_value = promotion.values
    entry = LedgerEntry(
        at=now(),
        by="promote",
        champion=promotion.candidate,
        replaced=promotion.champion,
        metric=promotion.metric,
        value=value,
        replaced_value=champions_value,
        p_value=promotion.test.p_value,
        rows=promotion.comparison.candidate.rows,
        data=promotion.data,
        rows_digest=promotion.comparison.candidate.digest,
        run=run,
    )
    versions.make_champion(entry)
    versions.record_comparison(promotion.candidate, text, note(promotion))
    return True


def roll_back(versions: Versions, run: str, is_dry: bool) -> tuple[str, str]:
    """Make the champion before the present one champion again; return (the one before, the present one).

    Raises:
        ModelError: the ledger has none, or it was deleted.
    """
    champion = versions.champion
    before = champion_before(versions.ledger(), champion)
    if before is None:
        raise ModelError(
            f"version {champion} of '{versions.name}' is its first champion, as far as its ledger goes: there is none "
            "to go back to"
        )
    if versions.get(before) is None:
        raise ModelError(
            f"version {before} of '{versions.name}', the champion before version {champion}, was deleted: set the "
            f"alias '{CHAMPION}' by hand"
        )
    if not is_dry:
        versions.make_champion(
            LedgerEntry(at=now(), by="rollback", champion=before, replaced=champion, run=run)
        )
    return before, champion


def new_folder(name: str, config: PromoteConfig) -> RunFolder:
    """Return the folder that a promotion's result goes to."""
    return unused_folder(config.storage_path, config.experiment_name, job_name("promote", name))


def log_promotion(
    folder: RunFolder, versions: Versions, promotion: Promotion, config: PromoteConfig
) -> PromotionResult:
    """Write a run folder with the result and sync it to MLflow."""
    measured, test = promotion.comparison.candidate, promotion.test
    metrics = {
        f"{side}/{metric}": value
        for side, one in (("candidate", measured), ("champion", promotion.comparison.champion))
        for metric, value in one.metrics.items()
    }
    dataset = DatasetRecord(
        name=measured.source.partition("?")[0][-250:],
        digest=measured.digest,
        source_type="shoal",
        source=measured.source,
    )
    result = {
        "model": versions.name,
        "candidate": promotion.candidate,
        "champion": promotion.champion,
        "is_promoted": promotion.outcome != "loses",
        "outcome": promotion.outcome,
        "why": promotion.why,
        "metric": promotion.metric,
        "difference": promotion.values[0] - promotion.values[1],
        "interval": [test.low, test.high] if isinstance(test, Bootstrap) else None,
        "p_value": test.p_value,
        "test": type(test).__name__.lower(),
        "only_candidate_right": test.only_candidate if isinstance(test, Mcnemar) else None,
        "only_champion_right": test.only_champion if isinstance(test, Mcnemar) else None,
        "margin": config.promote.margin,
        "is_paired": promotion.comparison.is_paired,
        "split": measured.split,
        "rows": measured.rows,
        "rows_digest": measured.digest,
        "data": promotion.data,
        "candidate_metrics": measured.metrics,
        "champion_metrics": promotion.comparison.champion.metrics,
        "slices": [asdict(one) for one in promotion.slices],
    }
    numbers = {**metrics, "difference": promotion.values[0] - promotion.values[1], "p_value": test.p_value}
    metadata = _metadata(versions.name, promotion.candidate, promotion.champion, note(promotion), dataset)
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    found = JobResult(config, metadata, finite, {}, PromotionResult, result)
    return log_job_result(folder, found, config.experiment_name, versions.tracking_uri)


def log_rollback(
    folder: RunFolder, versions: Versions, before: str, champion: str, config: PromoteConfig
) -> PromotionResult:
    """Write a run folder that says which version is champion again, and sync it to MLflow."""
    why = f"version {before} is champion again, instead of version {champion}"
    result = {
        "model": versions.name,
        "candidate": before,
        "champion": champion,
        "is_promoted": True,
        "outcome": "rollback",
        "why": why,
    }
    metadata = _metadata(versions.name, before, champion, why)
    found = JobResult(config, metadata, {}, {}, PromotionResult, result)
    return log_job_result(folder, found, config.experiment_name, versions.tracking_uri)


def note(promotion: Promotion) -> str:
    """Return the comparison in Markdown."""
    ours, theirs = promotion.comparison.candidate, promotion.comparison.champion
    header = ("metric", f"version {promotion.candidate}", f"version {promotion.champion}, the champion")
    rows = [
        (name, f"{value:.6g}", f"{theirs.metrics[name]:.6g}")
        for name, value in ours.metrics.items()
        if name in theirs.metrics
    ]
    parts = [f"Version {promotion.candidate} {promotion.outcome}: {promotion.why}."]
    parts.append(markdown_table(header, rows))
    if promotion.slices:
        head = (
            "column",
            "rows with",
            "rows",
            *(f"{promotion.metric}, version {one}" for one in (promotion.candidate, promotion.champion)),
            "p",
        )
        cells = [
            (
                one.column,
                one.value,
                f"{one.rows:,}",
                f"{one.candidate:.6g}",
                f"{one.champion:.6g}",
                f"{one.p_value:.3g}",
            )
            for one in promotion.slices
        ]
        parts += ["Where the candidate is worst beside the champion:", markdown_table(head, cells)]
    return "\n\n".join(parts)


def _metadata(
    name: str, candidate: str, champion: str, note: str, dataset: DatasetRecord | None = None
) -> Metadata:
    return Metadata(
        params={"model": f"models:/{name}/{candidate}", "champion": f"models:/{name}/{champion}"},
        tags={"shoal.job": "promote", "mlflow.note.content": note},
        contexts=["evaluation"],
        dataset=dataset,
    )
