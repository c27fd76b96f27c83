"""Closes runs that MLflow shows as RUNNING while their driver is gone."""

from typing import Any

from shoal.storage.lease import is_alive
from shoal.tracking.sync import LEASE_TAG, PARENT_TAG, REASON_TAG, parse_lease


def reap(client: Any) -> list[str]:
    """Close runs that MLflow shows as RUNNING while their driver is gone; return their names.

    The lease in a run's tags decides: on this host by its process, elsewhere by its last renewal. A run without one,
    or with one that cannot be read, is left alone.
    """
    closed = []
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"attributes.status = 'RUNNING' and tags.`{LEASE_TAG}` != ''")
    for run in found:
        lease = parse_lease(run.data.tags[LEASE_TAG])
        if lease is None or is_alive(lease):
            continue
        reason = f"the driver of this run ({lease.process}) is gone"
        children = client.search_runs(
            experiments, f"attributes.status = 'RUNNING' and tags.`{PARENT_TAG}` = '{run.info.run_id}'"
        )
        for one in [*children, run]:
            client.set_tag(one.info.run_id, REASON_TAG, reason)
            client.set_terminated(one.info.run_id, "FAILED")
            closed.append(one.info.run_name)
    return closed
