"""Closes runs that say RUNNING while the process that led them is gone."""

import json
from typing import Any

from shoal.storage.lease import is_alive
from shoal.tracking.sync import LEASE_TAG, PARENT_TAG, REASON_TAG


def reap(client: Any) -> list[str]:
    """Close runs that say RUNNING while the process that led them is gone; return their names.

    A run is judged by the lease in its tags: on this host by its process, elsewhere by its last beat.
    """
    closed = []
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"attributes.status = 'RUNNING' and tags.`{LEASE_TAG}` != ''")
    for run in found:
        lease = json.loads(run.data.tags[LEASE_TAG])
        if lease is None or is_alive(lease):
            continue
        reason = f"the process that led this run (pid {lease['pid']} on {lease['host'].split()[0]}) is gone"
        children = client.search_runs(
            experiments, f"attributes.status = 'RUNNING' and tags.`{PARENT_TAG}` = '{run.info.run_id}'"
        )
        for one in [*children, run]:
            client.set_tag(one.info.run_id, REASON_TAG, reason)
            client.set_terminated(one.info.run_id, "FAILED")
            closed.append(one.info.run_name)
    return closed
