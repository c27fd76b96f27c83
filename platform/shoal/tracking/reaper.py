"""Closes runs that MLflow shows as RUNNING while their driver is gone."""

import time
from typing import Any

from shoal.storage.lease import LEASE_S, liveness
from shoal.storage.records import Lease
from shoal.tracking.sync import LEASE_TAG, PARENT_TAG, REASON_TAG


class Reaper:
    """Closes them in two looks: the first at those of this host, the second, LEASE_S later, at those of others.

    The lease in a run's tags decides: on this host by its process; elsewhere the driver is gone if the lease did not
    change between the two looks. A run without a lease, or with one that cannot be read, is left alone.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Lease] | None = None  # of other hosts, by the run, at the first look
        self._due_s = 0.0

    @property
    def watches(self) -> bool:
        """Whether a second look, LEASE_S after the first, may close more."""
        return bool(self._seen)

    def reap(self, client: Any) -> list[str]:
        """Look if it is time; return the names of the runs that were closed."""
        if time.monotonic() < self._due_s:
            return []
        earlier, silent, closed = self._seen or {}, dict[str, Lease](), list[str]()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(experiments, f"attributes.status = 'RUNNING' and tags.`{LEASE_TAG}` != ''")
        for run in found:
            lease, run_id = parse_lease(run.data.tags[LEASE_TAG]), run.info.run_id
            known = "alive" if lease is None else liveness(lease)
            if lease and (known == "gone" or (known == "unknown" and earlier.get(run_id) == lease)):
                closed += _close(client, experiments, run, lease)
            elif lease and known == "unknown" and self._seen is None:
                silent[run_id] = lease
        self._seen, self._due_s = silent, time.monotonic() + LEASE_S if silent else float("inf")
        return closed


def _close(client: Any, experiments: list[str], run: Any, lease: Lease) -> list[str]:
    """Close a run and those of its trials."""
    reason = f"the driver of this run ({lease.process}) is gone"
    children = client.search_runs(
        experiments, f"attributes.status = 'RUNNING' and tags.`{PARENT_TAG}` = '{run.info.run_id}'"
    )
    for one in [*children, run]:
        client.set_tag(one.info.run_id, REASON_TAG, reason)
        client.set_terminated(one.info.run_id, "FAILED")
    return [one.info.run_name for one in [*children, run]]


def parse_lease(tag: str) -> Lease | None:
    """Return the lease that a tag holds, or None where it holds none that this version can read."""
    try:
        return Lease.parse(tag.encode())
    except ValueError:
        return None
