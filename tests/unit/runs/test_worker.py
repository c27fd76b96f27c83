"""One worker's part of a run, in this process."""

from functools import partial

import pytest
import torch

from shoal.cluster import session
from shoal.config.loading import load
from shoal.data.partition import partition_source
from shoal.distributed.process_group import SingleProcess
from shoal.errors import VerificationError
from shoal.runs import worker
from shoal.runs.config import RunConfig
from shoal.runs.finalize import package_and_verify
from shoal.runs.resident import place_of_rows, resident_shard
from shoal.runs.validate import validate
from shoal.runs.worker import WorkerSpec, run_worker
from shoal.storage.records import Outcome
from shoal.storage.run_folder import PROFILE, RunFolder
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.profiler import TRACE

CPU = torch.device("cpu")


def test_a_run_leaves_its_rates_memory_trace_and_averaged_weights(tmp_path):
    settings = [
        "scale.num_workers=0",
        "train.epochs=1",
        "train.ema=0.9",
        "train.precision=fp16",
        "profile=true",
    ]
    config = load(RunConfig, None, [*settings, "data.source=sklearn:iris", "train.micro_batch_size=8"])
    plan = validate(config, session.connect)
    folder = RunFolder(str(tmp_path))
    folder.create_identity(name="run", experiment="shoal", tracking_uri="none")
    part = partition_source(plan.source, plan.preprocessing, plan.dataset_info, 1)[0]
    spec = WorkerSpec(
        config, folder.uri, 1, plan.dataset_info, plan.preprocessing, plan.size.flops_per_sample
    )
    run_worker(spec, resident_shard(spec, part, 0, 1, CPU), SingleProcess(), CPU, watches_system=False)
    outcome = folder.load(Outcome)
    rates = outcome.rates
    flops = rates["flops_per_second"] / rates["samples_per_second"]
    assert flops == pytest.approx(3 * plan.size.flops_per_sample)
    assert "mfu" not in rates
    assert outcome.peak_memory_bytes[0] > 50 << 20
    assert outcome.micro_batch_size == 8
    assert folder.exists(f"{PROFILE}/{TRACE}")
    store = CheckpointStore(folder)
    name = store.names()[-1]
    held = store.open(name).optimizer()
    assert set(held) == {"optimizer", "trained", "scaler"}
    assert not torch.equal(held["trained"]["layers.0.weight"], store.open(name).weights()["layers.0.weight"])


def test_rows_stay_in_ram_where_they_would_take_too_much_of_the_device():
    gpu = torch.device("cuda:0")
    assert place_of_rows(40, free=100, device=gpu) == gpu
    assert place_of_rows(41, free=100, device=gpu) == CPU
    assert place_of_rows(1 << 40, free=None, device=CPU) == CPU


@pytest.mark.long
def test_a_saved_model_is_measured_on_so_many_rows_as_a_clean_process_computes_in_minutes(
    tmp_path, monkeypatch
):
    """Of a large data set, all of which only the workers can read and measure in reasonable time."""
    monkeypatch.setattr(worker, "VERIFIED_ROWS", 7)
    config = load(RunConfig, None, ["scale.num_workers=0", "train.epochs=1", "data.source=sklearn:iris"])
    plan = validate(config, session.connect)
    folder = RunFolder(str(tmp_path))
    folder.create_identity(name="run", experiment="shoal", tracking_uri="none")
    [part] = partition_source(plan.source, plan.preprocessing, plan.dataset_info, 1)
    spec = WorkerSpec(config, folder.uri, 1, plan.dataset_info, plan.preprocessing)
    run_worker(spec, resident_shard(spec, part, 0, 1, CPU), SingleProcess(), CPU, watches_system=False)
    outcome = folder.load(Outcome)
    assert outcome.sampled_rows == 7
    assert outcome.sampled_metrics["loss"] != outcome.val_metrics["val/loss"]
    verify = partial(package_and_verify, folder, config, plan.source, plan.preprocessing, plan.dataset_info)
    assert verify(outcome)
    others = {**outcome.sampled_metrics, "loss": outcome.val_metrics["val/loss"]}
    with pytest.raises(VerificationError, match="measures loss="):
        verify(outcome.model_copy(update={"sampled_metrics": others}))


@pytest.mark.parametrize(
    ("flops", "rows"), [(None, 20_000), (100_000, 20_000), (8_000_000_000, 1250), (10**15, 32)]
)
def test_the_rows_that_are_verified_become_fewer_with_the_size_of_the_model(flops, rows):
    assert worker.rows_to_verify(flops) == rows
