"""The data sets of a sweep, each read and transformed once for all trials with the same data config.

It does not know trials.
"""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from shoal.cluster.shard_store import ShardRefs, put_shards
from shoal.data.dataset_info import DatasetInfo, check_batch
from shoal.errors import UserError
from shoal.runs.config import RunConfig
from shoal.runs.validate import RunPlan, validate_data
from shoal.tasks.open_data import preprocessing_spec
from shoal.tune.validate import evaluations


@dataclass(frozen=True)
class CachedDataset:
    """A data set with its rows in Ray's object store.

    Attributes:
        plan: of the first run that asked for it.
    """

    plan: RunPlan
    info: DatasetInfo
    shard_refs: ShardRefs


class DatasetCache:
    """Data sets by the part of a config that determines their rows."""

    def __init__(self) -> None:
        self._entries: dict[str, CachedDataset] = {}

    def put(self, plan: RunPlan) -> DatasetInfo:
        """Put the rows of a validated plan into the object store, divided among its workers."""
        dataset_info, shard_refs = put_shards(plan, plan.config.scale.data_size)
        self._entries[_cache_key(plan.config)] = CachedDataset(plan, dataset_info, shard_refs)
        return dataset_info

    def get(self, config: RunConfig) -> CachedDataset:
        """Return the data set of a config; the first call for it reads and puts it.

        Raises:
            DataError: it cannot be trained on.
        """
        key = _cache_key(config)
        if key not in self._entries:
            self.put(validate_data(config))
        cached = self._entries[key]
        check_batch(config.data, cached.info.rows)
        return cached

    def steps_per_epoch(self, config: RunConfig) -> int:
        """Return the optimiser steps of an epoch."""
        cached = self.get(config)
        preprocessing = preprocessing_spec(config.data, config.task, config.seed, cached.plan.source)
        return cached.info.lanes(preprocessing).steps

    def most_evaluations(self, configs: Iterable[RunConfig]) -> int:
        """Return the number of evaluations of the longest of some trials."""
        counts = [1]
        for config in configs:
            with contextlib.suppress(UserError):  # a corner that cannot be trained
                counts.append(evaluations(config, self.steps_per_epoch(config)))
        return max(counts)


def _cache_key(config: RunConfig) -> str:
    data = config.data.model_dump()
    # One worker holds all rows, whatever the batch size; for several the rows are divided by lanes of a batch.
    if config.scale.data_size == 1:
        data.pop("global_batch_size")
    return json.dumps([data, config.task, config.scale.data_size], sort_keys=True)
