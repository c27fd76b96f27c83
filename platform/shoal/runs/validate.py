"""Checks before anything starts: config, data, model and machine fit together."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType

from shoal.config.import_path import find
from shoal.data.dataset_info import DatasetInfo, inspect_source
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import TEST, TRAIN, VALIDATION, Lanes
from shoal.data.sources.base import Source
from shoal.data.sources.open import is_function
from shoal.distributed.parallelism import check_strategy
from shoal.errors import ConfigError
from shoal.models.inputs import sample_like
from shoal.models.pretrained import NOT_LOADED
from shoal.models.registry import build_model_for, find_builder
from shoal.models.size import ModelSize, measure_size
from shoal.registry.preflight import check_tracking_uri
from shoal.runs.config import RunConfig
from shoal.runs.locations import resolve_tracking_uri
from shoal.runs.machine import Connect, check_cluster, check_local, cluster_address
from shoal.runs.probe import probe, training_rows
from shoal.storage.lease import now_ms
from shoal.tasks.open_data import open_data, preprocessing_spec
from shoal.tasks.registry import TASKS
from shoal.tracking.config import TrackConfig
from shoal.training.loop import total_steps
from shoal.training.lr_schedule import check_schedule
from shoal.training.optimizer import check_optimizer
from shoal.training.user_callbacks import check_callbacks

logger = logging.getLogger(__name__)

FEW_ROWS = 100  # a share of fewer is off by 5 points and more by chance alone


@dataclass(frozen=True)
class RunPlan:
    """A config that was checked against its data, its model and this machine; nothing is started yet."""

    config: RunConfig
    source: Source
    preprocessing: PreprocessingSpec
    dataset_info: DatasetInfo | None  # None: the data is too large to look at before there is a cluster
    size: ModelSize | None
    submitted_ms: int = field(default_factory=now_ms)  # Unix milliseconds


def check_tracking(track: TrackConfig) -> None:
    """Refuse a tracking URI at which nothing can be recorded; every job calls it before it starts anything.

    Raises:
        ConfigError: with the rule that it breaks.
    """
    check_tracking_uri(resolve_tracking_uri(track))


def validate(config: RunConfig, connect: Connect, compared: Sequence[tuple[str, str]] = ()) -> RunPlan:
    """Check all that can be checked before anything is started.

    Args:
        connect: called before a user's function that uses Ray, which would start Ray with other settings.
        compared: further metrics that decide something, each with the key that names it.

    Raises:
        UserError: the first rule that is broken.
    """
    address = cluster_address()
    check_local(config.scale, address)
    if config.scale.most_workers and address is not None:
        check_cluster(address)
    TASKS[config.task].check_installed()
    find_builder(config.model.name)
    check_optimizer(config.optim)
    check_callbacks(config.train.callbacks)
    if config.scale.most_workers and _uses_ray(config.data.source):
        connect(config.scale, 1)
    source = open_data(config.data, config.task, config.seed)
    preprocessing = preprocessing_spec(config.data, config.task, config.seed, source)
    if config.scale.most_workers and not source.is_small:
        return RunPlan(config, source, preprocessing, None, None)
    dataset_info = inspect_source(source, preprocessing)
    size = check_training(config, dataset_info, source, preprocessing, compared)
    return RunPlan(config, source, preprocessing, dataset_info, size)


def validate_data(config: RunConfig) -> RunPlan:
    """Check the data of a config alone: those of a trial whose data differ from the others'.

    Raises:
        DataError: the first rule that is broken.
    """
    source = open_data(config.data, config.task, config.seed)
    preprocessing = preprocessing_spec(config.data, config.task, config.seed, source)
    return RunPlan(
        config,
        source,
        preprocessing,
        inspect_source(source, preprocessing) if source.is_small else None,
        None,
    )


def check_training(
    config: RunConfig,
    dataset_info: DatasetInfo,
    source: Source,
    preprocessing: PreprocessingSpec,
    compared: Sequence[tuple[str, str]] = (),
) -> ModelSize:
    """Find on a few training rows what would fail in training or after it; return the model's size.

    Raises:
        UserError: the first rule that is broken.
    """
    steps = total_steps(config.train, Lanes(dataset_info.rows[TRAIN], config.data.global_batch_size, 0).steps)
    _warn_of_what_is_odd(config, dataset_info, steps)
    if config.data.group_by_length and not any(one.is_ragged for one in dataset_info.transform.columns):
        raise ConfigError(
            "data.group_by_length=true groups rows of different lengths, and here all are alike: leave it out"
        )
    check_schedule(config.optim, steps)
    model = build_model_for(config.model, dataset_info.transform, config.task, config.seed)
    if not_loaded := getattr(model, NOT_LOADED, None):
        logger.warning("%s", not_loaded)
    check_strategy(model, config.scale)
    rows = training_rows(source, preprocessing)
    return probe(config, dataset_info, preprocessing, rows, model, compared)


def _warn_of_what_is_odd(config: RunConfig, dataset_info: DatasetInfo, steps: int) -> None:
    """Say what trains, and hardly as it was meant."""
    rows, optim = dataset_info.rows, config.optim
    if not rows[VALIDATION] and not rows[TEST]:
        logger.warning(
            "nothing is held out (0 validation rows, 0 test rows): the model is neither measured nor verified; "
            "data.validation_fraction and data.test_fraction hold rows out"
        )
    few = [f"{rows[split]} {split} rows" for split in (VALIDATION, TEST) if 0 < rows[split] < FEW_ROWS]
    if few:
        logger.warning(
            "%s of %d are held out: metrics of fewer than %d rows depend on which rows these are; raise "
            "data.validation_fraction and data.test_fraction, or add rows",
            " and ".join(few),
            sum(rows.values()),
            FEW_ROWS,
        )
    if steps < optim.warmup_steps:
        logger.warning(
            "optim.warmup_steps=%d is longer than the training of %d steps: the learning rate reaches %.2g%% of "
            "optim.lr=%g; set optim.warmup_steps to less than %d, or train longer",
            optim.warmup_steps,
            steps,
            100 * steps / optim.warmup_steps,
            optim.lr,
            steps,
        )


def measure_model(config: RunConfig, dataset_info: DatasetInfo) -> ModelSize:
    """Build the model once, here, and return its size.

    Raises:
        ModelError: it cannot be built, does not take such rows, or cannot be divided as `scale.strategy` says.
    """
    model = build_model_for(config.model, dataset_info.transform, config.task, config.seed)
    check_strategy(model, config.scale)
    return measure_size(model, sample_like(dataset_info.transform, model))


def _uses_ray(uri: str) -> bool:
    """Whether a source is a user's function whose module imports Ray."""
    if not is_function(uri):
        return False
    function = find(uri.partition("?")[0], "data.source")
    names = vars(sys.modules[function.__module__]) if function.__module__ in sys.modules else {}
    modules = (getattr(value, "__name__", "") for value in names.values() if isinstance(value, ModuleType))
    return any(name.partition(".")[0] == "ray" for name in modules)
