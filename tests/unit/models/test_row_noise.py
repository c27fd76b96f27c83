"""Random numbers of a model are those of the rows, whoever has them; of the distribution that torch draws from."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import get_gradient_edge
from torch.distributions import Bernoulli, Normal
from torch.utils.checkpoint import checkpoint

from shoal.models.row_draws import RowsOfBatch
from shoal.models.row_noise import RowNoise

CPU = torch.device("cpu")
ROWS, COLUMNS = 12, 5

DRAWS = {
    "rand": lambda x: torch.rand(len(x), COLUMNS),
    "rand of a shape": lambda x: torch.rand(x.shape),
    "rand of a size": lambda x: torch.rand(size=x.shape),
    "randn": lambda x: torch.randn(*x.shape, dtype=torch.float64),
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "normal": lambda x: torch.normal(x, 2.0),
    "normal of a size": lambda x: torch.normal(0.0, 2.0, size=x.shape),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.3)),
    "normal_": lambda x: torch.empty_like(x).normal_(1.0, 2.0),
    "uniform_": lambda x: torch.empty_like(x).uniform_(-1.0, 1.0),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.3),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x),
    "dropout": lambda x: F.dropout(x + 1, 0.3),
    "Normal": lambda x: Normal(x, 1.0).rsample(),
    "Bernoulli": lambda x: Bernoulli(torch.full_like(x, 0.3)).sample(),
}


def drawn(draw, first=0, distance=1, count=ROWS, step=0):
    torch.manual_seed(first)  # what each worker's own generator holds is of no matter
    with RowsOfBatch(0, step, first, distance, count, CPU), RowNoise():
        return draw(torch.zeros(count, COLUMNS)), RowNoise.has_drawn()


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("workers", [2, 3])
def test_a_row_draws_alike_however_the_batch_is_divided(name, workers):
    whole, has_drawn = drawn(DRAWS[name])
    assert has_drawn
    assert len(whole.unique()) > 1
    for worker in range(workers):
        count = len(range(worker, ROWS, workers))
        part, _ = drawn(DRAWS[name], worker, workers, count)
        assert torch.equal(part, whole[worker::workers])


def test_steps_and_calls_draw_other_numbers():
    two, _ = drawn(lambda x: torch.stack([torch.rand_like(x), torch.rand_like(x)]))
    later, _ = drawn(torch.rand_like, step=1)
    assert not torch.equal(two[0], two[1])
    assert not torch.equal(two[0], later)


@pytest.mark.parametrize("name", ["rand", "randn", "exponential_", "bernoulli_"])
def test_the_distribution_is_torchs(name):
    count = 40_000
    by_row, _ = drawn(DRAWS[name], count=count)
    by_torch = DRAWS[name](torch.zeros(count, COLUMNS))
    assert by_row.dtype == by_torch.dtype
    levels = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)
    found, expected = (draws.double().flatten()[:100_000].quantile(levels) for draws in (by_row, by_torch))
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.02)
    correlation = torch.corrcoef(by_row.double().T) - torch.eye(COLUMNS, dtype=torch.float64)
    assert correlation.abs().max() < 0.03


@pytest.mark.parametrize(
    "draw", [lambda x: torch.rand(3, 2), lambda x: torch.rand(()), lambda x: torch.randperm(ROWS)]
)
def test_what_is_not_of_the_rows_is_drawn_by_torch(draw):
    found, has_drawn = drawn(draw)
    torch.manual_seed(0)
    assert torch.equal(found, draw(None))
    assert not has_drawn


def test_a_generator_that_is_passed_is_used():
    def draw(x):
        return torch.rand(ROWS, generator=torch.Generator().manual_seed(5))

    assert torch.equal(drawn(draw)[0], draw(None))


def test_activations_that_are_computed_again_draw_the_same():
    def noisy(x):
        return (x * torch.rand_like(x)).exp()

    gradients = []
    for forward in (noisy, lambda x: checkpoint(noisy, x, use_reentrant=False)):
        x = torch.ones(ROWS, COLUMNS, requires_grad=True)
        torch.manual_seed(0)
        with RowsOfBatch(0, 0, 0, 1, ROWS, CPU), RowNoise():
            torch.autograd.backward(get_gradient_edge(forward(x).sum()))
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_outside_of_training_torch_draws():
    with RowNoise():
        torch.manual_seed(1)
        found = torch.rand(ROWS)
    torch.manual_seed(1)
    assert torch.equal(found, torch.rand(ROWS))
