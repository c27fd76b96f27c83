"""Which version of a registered model is its champion: the better one, measured on the same rows."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ModelError
from shoal.registry.compare import Request, compare
from shoal.registry.ledger import CHAMPION, make_champion, now
from shoal.registry.versions import download_version, find_champion, weights_of
from shoal.storage.records import LedgerEntry, Verified
from shoal.tasks.metrics import is_better

LIKE = (
    "metric",
    "data",
    "held_out",
)  # tags of a version; its value is comparable where all of them are the same


@dataclass(frozen=True)
class Candidate:
    """A version that may become champion.

    Attributes:
        name: of the registered model.
        version: of it.
        verified: what its run measured.
        model: folder of the MLflow model.
        runs_code: whether this run's own code may be called: its builder, its function of data.
    """

    name: str
    version: str
    verified: Verified
    model: Path
    runs_code: bool

    @property
    def tags(self) -> dict[str, str]:
        """What its value is a measurement of."""
        verified = self.verified
        return {"metric": verified.metric, "data": verified.data, "held_out": verified.held_out or ""}


def contest(client: Any, candidate: Candidate) -> str:
    """Make a version the champion if it is better than the present one on the same rows; return what was compared.

    A champion that was measured otherwise is measured again on the candidate's rows. One that cannot be stays.
    """
    champion = find_champion(client, candidate.name)
    about = f"{candidate.name} version {candidate.version}"
    entry = LedgerEntry(
        at=now(),
        by="training",
        champion=candidate.version,
        metric=candidate.verified.metric,
        value=candidate.verified.value,
        data=candidate.verified.data,
    )
    if champion is None:
        make_champion(client, candidate.name, entry)
        return f"{about} is the champion: there was none"
    if str(champion.version) == candidate.version:  # the process ended before it could say so
        return f"{about} is the champion"
    other = f"version {champion.version}, the champion"
    try:
        found, where = _measured(client, candidate, champion)
    except ModelError as error:
        return (
            f"{about} was not compared with {other}, which stays: {error}. To replace it, set the alias "
            f"'{CHAMPION}' by hand"
        )
    value, champions_value = found
    wins = is_better(candidate.verified.metric, value, champions_value)
    present = find_champion(client, candidate.name)
    if present is not None and present.version != champion.version:
        return contest(client, candidate)  # another run's version has become champion meanwhile
    if wins:
        values = {"value": value, "replaced_value": champions_value, "replaced": str(champion.version)}
        make_champion(client, candidate.name, entry.model_copy(update=values))
    return (
        f"{about} {'becomes champion' if wins else 'does not become champion'}: {candidate.verified.metric} "
        f"{value:.6g} against {champions_value:.6g} of {other}, {where}"
    )


def _measured(client: Any, candidate: Candidate, champion: Any) -> tuple[tuple[float, float], str]:
    """Return what candidate and champion measure on the same rows, and in words where these values come from.

    Raises:
        ModelError: the champion cannot be measured on the candidate's rows; the message says why.
    """
    if {key: champion.tags.get(key) for key in LIKE} == candidate.tags and candidate.tags["held_out"]:
        values = candidate.verified.value, float(champion.tags["value"])
        return values, "as its own run measured on the same rows"
    prefix, _, metric = candidate.verified.metric.partition("/")
    split = {"val": "validation"}.get(prefix, prefix)
    with tempfile.TemporaryDirectory() as scratch:
        model = download_version(candidate.name, str(champion.version), scratch)
        folders = str(weights_of(candidate.model)), str(weights_of(model))
        found = compare(Request(*folders, [split], "own" if candidate.runs_code else "no"))
    if metric not in found.champion.metrics:
        raise ModelError(f"it does not measure {metric}")
    values = found.candidate.metrics[metric], found.champion.metrics[metric]
    return values, f"both measured on the same {found.candidate.rows} {split} rows of this version's data"
