import pytest
import torch
from torch import nn

from shoal.data.config import DataConfig
from shoal.data.labels import Label
from shoal.data.loader import ResidentShard, Rows
from shoal.data.preprocessing import Column, Transform
from shoal.data.sampler import Lanes
from shoal.data.tokenizer import make_tokenizer
from shoal.distributed.process_group import SingleProcess
from shoal.errors import TrainingError
from shoal.tasks.base import EvaluationRows
from shoal.tasks.classification import Classification
from shoal.tasks.registry import make_task
from shoal.training.evaluation import RowLimit, evaluate
from shoal.training.loop import evaluate_split
from training_run import FEATURES, TrainingRun


def shards(workers, rows=50):
    torch.manual_seed(0)
    inputs, targets = torch.randn(rows, 4), torch.randint(0, 3, (rows,))
    return [
        ResidentShard(
            Lanes(rows, 8, 0, worker, workers),
            Rows(inputs[worker::workers], targets[worker::workers]),
            {"validation": Rows(inputs[worker::workers], targets[worker::workers])},
        )
        for worker in range(workers)
    ]


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def total(workers):
    task, made = Classification(3), model()
    return sum(evaluate(made, task, shard, "validation", SingleProcess()).sums for shard in shards(workers))


def test_every_sample_counts_once_whatever_the_number_of_workers_and_batches(monkeypatch):
    whole = total(1)
    assert whole[0] == 50
    for workers, batch_size in [(3, 1024), (1, 7), (4, 1)]:
        monkeypatch.setattr(Classification, "held_out_rows", EvaluationRows(1, batch_size))
        torch.testing.assert_close(total(workers), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("first", [1, 7, 23, 50])
def test_the_first_rows_of_a_split_are_the_same_on_any_number_of_workers(monkeypatch, first):
    whole = shards(1)[0].held_out("validation", 50)
    batch = next(whole)
    firsts = ResidentShard(
        Lanes(50, 8, 0), None, {"validation": Rows(batch.inputs[:first], batch.targets[:first])}
    )
    expected = evaluate(model(), Classification(3), firsts, "validation", SingleProcess()).sums
    monkeypatch.setattr(Classification, "held_out_rows", EvaluationRows(1, 4))
    for workers in (1, 3):
        found = 0
        for rank, shard in enumerate(shards(workers)):
            collective = SingleProcess()
            collective.data_rank, collective.data_size = rank, workers
            found += evaluate(model(), Classification(3), shard, "validation", collective, first=first).sums
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_evaluation_leaves_the_model_as_it_was():
    made = model()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    evaluate(made, Classification(3), shards(1)[0], "validation", SingleProcess())
    assert made.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters())


def test_a_worker_without_a_row_adds_nothing():
    empty = ResidentShard(
        Lanes(1, 1, 0), None, {"validation": Rows(torch.empty(0, 4), torch.empty(0).long())}
    )
    assert evaluate(model(), Classification(3), empty, "validation", SingleProcess()).sums.sum() == 0


class Short(nn.Module):
    """Memory for so many rows at a time; `rows` are those of each forward pass."""

    def __init__(self, limit, error, inner=None):
        super().__init__()
        self.limit, self.error, self.inner = limit, error, inner or model()
        self.rows = []

    def forward(self, x):
        self.rows.append(len(x))
        if len(x) > self.limit:
            raise self.error
        return self.inner(x)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_evaluation_halves_its_rows_when_memory_runs_out_and_measures_the_same(error, caplog):
    [shard] = shards(1)
    whole = evaluate(model(), Classification(3), shard, "validation", SingleProcess()).sums
    short, limit = Short(7, error), RowLimit()
    found = evaluate(short, Classification(3), shard, "validation", SingleProcess(), limit=limit).sums
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
    assert short.rows == [50, 25, 12, *[6] * 8, 2]
    assert "out of memory evaluating 50 rows at a time; going on with 25" in caplog.text
    short.rows.clear()
    evaluate(short, Classification(3), shard, "validation", SingleProcess(), limit=limit)
    assert short.rows == [*[6] * 8, 2]  # the next evaluation does not run out again


def test_another_error_is_not_taken_for_a_lack_of_memory():
    [shard] = shards(1)
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate(Short(7, RuntimeError("shapes")), Classification(3), shard, "validation", SingleProcess())


def test_memory_that_does_not_hold_one_row_is_an_error_with_a_remedy():
    [shard] = shards(1)
    with pytest.raises(TrainingError, match=r"one row at a time: set train.evaluate_precision"):
        evaluate(Short(0, MemoryError()), Classification(3), shard, "validation", SingleProcess())


def sequence_task(context):
    tokenizer = make_tokenizer("byte", [])
    column = Column(name="tokens", kind="ready", shape=(context,), dtype="uint16")
    transform = Transform(
        columns=(column,), label=Label(name="y", classes=(0, 1)), tokenizer=tokenizer.to_json()
    )
    return make_task("sequence_classification", transform, DataConfig(context=context), 0)


def test_rows_at_a_time_follow_the_training_and_the_length_of_texts():
    """Before, a sequence classification evaluated 1,024 rows at a time whatever the context."""
    assert sequence_task(128).held_out_rows.at_a_time(8) == 64
    assert sequence_task(4096).held_out_rows.at_a_time(8) == 8
    assert sequence_task(4096).held_out_rows.at_a_time(2) == 2
    assert sequence_task(4096).held_out_rows.at_a_time(512) == 16
    assert sequence_task(100_000).held_out_rows.at_a_time(512) == 1


def test_a_run_evaluates_as_many_rows_as_it_trains(tmp_path):
    for settings, expected in [({}, 16), ({"micro_batch_size": 5}, 5)]:
        run = TrainingRun(tmp_path / str(expected), Short(1000, None, nn.Linear(6, 2)), **settings)
        run.loop.model.rows.clear()
        evaluate_split(run.loop, "validation")
        assert max(run.loop.model.rows) == expected
        assert sum(run.loop.model.rows) == 50


def test_evaluation_is_in_the_precision_that_is_asked_for():
    [shard] = shards(1)
    seen = []
    made = model()
    made[0].register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    exact = evaluate(made, Classification(3), shard, "validation", SingleProcess()).sums
    half = evaluate(made, Classification(3), shard, "validation", SingleProcess(), precision="bf16").sums
    assert seen == [torch.float32, torch.bfloat16]
    assert half.dtype == torch.float64
    assert half[0] == exact[0] == 50
    assert half[1] == pytest.approx(float(exact[1]), rel=0.02)
    assert half[1] != exact[1]


def test_a_run_evaluates_in_half_precision_while_training_and_in_full_precision_at_its_end(tmp_path):
    run = TrainingRun(tmp_path, evaluate_precision="bf16", epochs=1)
    seen = []
    run.loop.model.leave.register_forward_hook(
        lambda module, inputs, output: None if module.training else seen.append(output.dtype)
    )
    run.train()
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    evaluate_split(run.loop, "validation")  # as `shoal.runs.worker` does at the end
    assert set(seen) == {torch.float32}


class WritesOnItsInputs(nn.Module):
    """Normalizes in place, or not: the same numbers."""

    def __init__(self, in_place):
        super().__init__()
        torch.manual_seed(0)
        self.leave, self.in_place = nn.Linear(FEATURES, 2), in_place

    def forward(self, x):
        return self.leave(x.sub_(0.5).mul_(2.0) if self.in_place else (x - 0.5) * 2.0)


@pytest.mark.parametrize("size", [None, 5, "auto"])
def test_a_model_that_writes_on_its_inputs_trains_and_measures_as_one_that_does_not(tmp_path, size):
    found = [
        TrainingRun(tmp_path / str(in_place), WritesOnItsInputs(in_place), epochs=4, micro_batch_size=size)
        for in_place in (True, False)
    ]
    for run in found:
        run.train()
    one, other = (run.metric_log.points for run in found)
    assert one == other
