import torch
from torch import nn

from shoal.data.loader import ResidentShard, Rows
from shoal.data.sampler import Lanes
from shoal.distributed.process_group import SingleProcess
from shoal.tasks.classification import Classification
from shoal.training.evaluation import evaluate


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
    return sum(evaluate(made, task, shard, "validation", SingleProcess()) for shard in shards(workers))


def test_every_sample_counts_once_whatever_the_number_of_workers_and_batches(monkeypatch):
    whole = total(1)
    assert whole[0] == 50
    for workers, batch_size in [(3, 1024), (1, 7), (4, 1)]:
        monkeypatch.setattr(Classification, "held_out_rows", batch_size)
        torch.testing.assert_close(total(workers), whole, rtol=1e-6, atol=1e-6)


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
    assert evaluate(model(), Classification(3), empty, "validation", SingleProcess()).sum() == 0
