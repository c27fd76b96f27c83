"""Who became champion of a registered model, instead of whom and why: its tags `ledger.TIME`, of which none is changed.

An entry is written before the alias moves, so that no champion that Shoal made is without one.
"""

from datetime import UTC, datetime
from typing import Any

from shoal.storage.records import LedgerEntry

CHAMPION = "champion"  # the alias
PREFIX = "ledger."


def now() -> str:
    """Return the time of an entry; as texts, later ones are larger."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def make_champion(client: Any, name: str, entry: LedgerEntry) -> None:
    """Write an entry and move the alias to its version."""
    client.set_registered_model_tag(name, PREFIX + entry.at, entry.model_dump_json(exclude_none=True))
    client.set_registered_model_alias(name, CHAMPION, entry.champion)


def read_ledger(client: Any, name: str) -> list[LedgerEntry]:
    """Return the entries of a registered model, oldest first."""
    tags = client.get_registered_model(name).tags
    return [LedgerEntry.model_validate_json(tags[key]) for key in sorted(tags) if key.startswith(PREFIX)]


def champion_before(ledger: list[LedgerEntry], champion: str) -> str | None:
    """Return the version that the present champion replaced; None: it is the first.

    A champion that the ledger does not have was made by hand: the last one that it has was before.
    """
    made = [entry for entry in ledger if entry.champion == champion and entry.by != "rollback"]
    if made:
        return made[-1].replaced
    return next((entry.champion for entry in reversed(ledger) if entry.champion != champion), None)
