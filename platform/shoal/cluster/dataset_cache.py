"""The data of a sweep's trials, read and transformed once for all that ask for the same. Knows no trials."""

import contextlib
import json
from collections.abc import Iterable

from shoal.cluster.shard_store import ShardRefs, put_shards
from shoal.data.dataset_info import DatasetInfo, check_batch
from shoal.errors import UserError
from shoal.runs.config import RunConfig
from shoal.runs.validate import RunPlan, validate_data
from shoal.tasks.open_data import preprocessing_spec
from shoal.tune.validate import evaluations


class DatasetCache:
    """Holds the data that was dealt, by what a config says of it."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[RunPlan, DatasetInfo, ShardRefs]] = {}

    def put(self, plan: RunPlan) -> DatasetInfo:
        """Deal the data of a plan that was checked already."""
        dataset_info, shard_refs = put_shards(plan, plan.config.scale.data_size)
        self._entries[_cache_key(plan.config)] = plan, dataset_info, shard_refs
        return dataset_info

    def get(self, config: RunConfig) -> tuple[RunPlan, DatasetInfo, ShardRefs]:
        """Return the data a config asks for, dealing it if it is the first to.

        Raises:
            DataError: it cannot be trained on.
        """
        key = _cache_key(config)
        if key not in self._entries:
            self.put(validate_data(config))
        plan, dataset_info, shard_refs = self._entries[key]
        check_batch(config.data, dataset_info.rows)
        return plan, dataset_info, shard_refs

    def steps(self, config: RunConfig) -> int:
        """Return the steps of an epoch."""
        plan, dataset_info, _ = self.get(config)
        return dataset_info.lanes(
            preprocessing_spec(config.data, config.task, config.seed, plan.source)
        ).steps

    def most_evaluations(self, configs: Iterable[RunConfig]) -> int:
        """Return how often the longest of some trials is evaluated."""
        found = [1]
        for config in configs:
            with contextlib.suppress(UserError):  # a corner that cannot be trained
                found.append(evaluations(config, self.steps(config)))
        return max(found)


def _cache_key(config: RunConfig) -> str:
    data = config.data.model_dump()
    # One worker holds all rows, whatever the batch; several are dealt the lanes of a batch.
    if config.scale.data_size == 1:
        data.pop("global_batch_size")
    return json.dumps([data, config.task, config.scale.data_size], sort_keys=True)
