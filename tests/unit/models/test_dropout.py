"""Masks are those of the rows, whoever has them; what torch's own modules do stays."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from shoal.models import dropout
from shoal.models.dropout import use_row_dropout
from shoal.models.row_draws import RowsOfBatch, announced

CPU = torch.device("cpu")
ROWS = 12


def rows(first=0, distance=1, count=ROWS, step=0, seed=0):
    return RowsOfBatch(seed, step, first, distance, count, CPU)


def converted(*layers):
    model = nn.Sequential(*layers)
    use_row_dropout(model)  # twice is as once
    use_row_dropout(model)
    return model.train()


class DropPath(nn.Module):
    """As transformers has it, e.g. in its ConvNext."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states):
        kept = torch.rand(len(hidden_states), *(1,) * (hidden_states.dim() - 1)) >= self.drop_prob
        return hidden_states * kept / (1 - self.drop_prob)


# A layer, and of its activations the shape, n standing for the rows.
CASES = {
    "features": (nn.Dropout(0.3), ("n", 7)),
    "tokens": (nn.Dropout(0.3), ("n", 5, 8)),
    "large": (nn.Dropout(0.3), ("n", 40, 800)),
    "sequence first": (nn.Dropout(0.3), (5, "n", 8)),
    "flattened": (nn.Dropout(0.3), ("5n", 8)),
    "pixels": (nn.Dropout(0.3), ("n", 3, 5, 5)),
    "1d": (nn.Dropout1d(0.3), ("n", 6, 5)),
    "2d": (nn.Dropout2d(0.3), ("n", 6, 5, 5)),
    "3d": (nn.Dropout3d(0.3), ("n", 6, 2, 3, 3)),
    "alpha": (nn.AlphaDropout(0.3), ("n", 7)),
    "path": (DropPath(0.3), ("n", 5, 8)),
}


def activations(shape, count):
    sizes = {"n": count, "5n": 5 * count}
    return torch.ones([sizes.get(size, size) for size in shape])


def part(shape, whole, which):
    """Some rows of what was computed for all."""
    if shape[0] == "5n":
        return whole.view(ROWS, 5, *whole.shape[1:])[which].flatten(0, 1)
    return whole[:, which] if shape[1] == "n" else whole[which]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_a_row_is_masked_alike_however_the_batch_is_divided(case, workers):
    layer, shape = CASES[case]
    model = converted(layer)
    for step in (0, 1, 70):
        with rows(step=step):
            whole = model(activations(shape, ROWS))
        assert 0 < (whole == whole.max()).float().mean() < 1
        for worker in range(workers):
            count = len(range(worker, ROWS, workers))
            with rows(worker, workers, count, step):
                found = model(activations(shape, count))
            assert torch.equal(found, part(shape, whole, slice(worker, None, workers)))
        for first in range(0, ROWS, 3):  # micro-batches of one worker
            with rows(first, 1, 3, step):
                found = model(activations(shape, 3))
            assert torch.equal(found, part(shape, whole, slice(first, first + 3)))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_p_is_zero_and_the_mean_stays(p):
    model = converted(nn.Dropout(p))
    with rows(count=500):
        found = model(torch.ones(500, 1001))
    kept = found != 0
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / kept.numel()) ** 0.5)
    assert torch.allclose(found[kept], torch.tensor(1 / (1 - p)), rtol=1e-4)


def masks(model, **kwargs):
    with rows(count=64, **kwargs):
        return [(layer(torch.ones(64, 1000)) != 0).float() for layer in model]


def correlation(one, other):
    return torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs().item()


def test_rows_columns_layers_steps_and_seeds_draw_independently():
    model = converted(nn.Dropout(0.5), nn.Dropout(0.5))
    first, layer = masks(model)
    (step, _), (seed, _), (row, _) = masks(model, step=1), masks(model, seed=1), masks(model, first=64)
    others = [
        layer,
        step,
        seed,
        row,
        first.roll(1, 0),
        first.roll(1, 1),
        first.roll(2, 1),
        first.roll((1, 1), (0, 1)),
    ]
    bound = 5 / first.numel() ** 0.5
    assert all(correlation(first, other) < bound for other in others)
    for three in itertools.combinations([first, layer, step, seed, row], 3):
        assert torch.stack(three).prod(0).mean().item() == pytest.approx(0.125, abs=bound)
    per_row, per_column = first.mean(1), first.mean(0)
    assert per_row.std().item() == pytest.approx(0.5 / 1000**0.5, rel=0.4)
    assert per_column.std().item() == pytest.approx(0.5 / 64**0.5, rel=0.2)


def test_the_calls_of_a_layer_in_one_forward_differ_and_come_again_in_the_next():
    (layer,) = converted(nn.Dropout(0.5))
    with rows():
        first, second = layer(torch.ones(ROWS, 100)), layer(torch.ones(ROWS, 100))
    with rows():
        again = [layer(torch.ones(ROWS, 100)) for _ in range(2)]
    assert not torch.equal(first, second)
    assert torch.equal(again[0], first)
    assert torch.equal(again[1], second)


class Shared(nn.Module):
    """One block, run three times, whose activations may be computed again: each time with its own mask."""

    def __init__(self, checkpoints):
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.2))
        self.checkpoints = checkpoints

    def forward(self, x):
        for _ in range(3):
            x = checkpoint(self.block, x, use_reentrant=False) if self.checkpoints else self.block(x)
        return x


def test_what_a_users_own_checkpoint_computes_again_has_the_masks_of_the_first_time():
    gradients = []
    for checkpoints in (False, True):
        model = Shared(checkpoints).train()
        use_row_dropout(model)
        with rows():
            model(torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, again in zip(*gradients, strict=True):
        assert torch.equal(kept, again)


def test_masks_made_for_several_steps_at_a_time_are_those_made_one_by_one(monkeypatch):
    model = converted(nn.Dropout(0.3))

    def found():
        outputs = []
        for step in (0, 1, 5, 63, 64, 65, 1000):
            with rows(step=step):
                outputs.append(model(torch.ones(ROWS, 33)))
        return torch.stack(outputs)

    together = found()
    monkeypatch.setattr(dropout, "TOGETHER", 0)
    assert torch.equal(found(), together)


def test_gradients_flow_through_what_is_kept():
    model, x = converted(nn.Dropout(0.3)), torch.randn(ROWS, 50, requires_grad=True)
    with rows():
        y = model(x)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)
    torch.testing.assert_close(x.grad[y != 0], torch.full_like(x.grad[y != 0], 1 / 0.7), rtol=1e-4, atol=0)


def test_a_worker_with_a_part_of_the_features_or_heads_has_its_part_of_the_mask():
    (layer,) = converted(nn.Dropout(0.4))
    for shape, dimension in (((ROWS, 5, 8), 2), ((ROWS, 4, 5, 5), 1)):
        with rows():
            whole = layer(torch.ones(shape))
        for index, ones in enumerate(torch.ones(shape).chunk(2, dimension)):
            layer.part = (index, 2)
            with rows():
                assert torch.equal(layer(ones), whole.chunk(2, dimension)[index])
        layer.part = None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype):
    with rows():
        assert converted(nn.Dropout(0.3))(torch.ones(ROWS, 4, dtype=dtype)).dtype == dtype


def test_everything_is_dropped_with_certainty_and_nothing_with_none():
    x = torch.randn(ROWS, 4)
    with rows():
        assert not converted(nn.Dropout(1.0))(x).any()
        assert converted(nn.Dropout(0.0))(x) is x


def test_in_place_it_writes_into_its_input():
    model, x = converted(nn.Dropout(0.3, inplace=True)), torch.ones(ROWS, 4)
    with rows():
        found = model(x)
        assert found.data_ptr() == x.data_ptr()
    with rows():
        assert torch.equal(converted(nn.Dropout(0.3))(torch.ones(ROWS, 4)), found)


def test_outside_of_training_and_of_the_loop_a_layer_does_what_torchs_does():
    plain, model = nn.Sequential(nn.Dropout(0.3)), converted(nn.Dropout(0.3))
    x = torch.randn(ROWS, 50)
    torch.manual_seed(0)
    expected = plain(x)
    torch.manual_seed(0)
    assert torch.equal(model(x), expected)
    with rows():
        assert torch.equal(model.eval()(x), x)


def test_where_rows_are_not_found_it_draws_as_torch_does_and_says_so():
    model = converted(nn.Dropout(0.3))
    announced.fallbacks.clear()
    with rows():
        assert 0 < (model(torch.ones(7, 50)) == 0).float().mean() < 1
    assert announced.fallbacks == {(7, 50)}


def test_names_weights_and_users_own_classes_stay():
    class Own(nn.Dropout):
        def forward(self, x):
            return F.dropout(x, self.p, self.training) + 1

    plain = nn.ModuleDict({"drop": nn.Dropout(0.3), "own": Own(0.3), "layer": nn.Linear(2, 2)})
    before = [name for name, _ in plain.named_modules()], list(plain.state_dict())
    use_row_dropout(plain)
    assert ([name for name, _ in plain.named_modules()], list(plain.state_dict())) == before
    assert isinstance(plain["drop"], nn.Dropout)
    assert type(plain["own"]) is Own
