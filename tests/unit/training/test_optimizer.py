import contextlib
import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from shoal.training.lr_schedule import WSD_DECAY_SHARE, learning_rate
from shoal.training.optimizer import OptimConfig, build_optimizer
from training_run import STEPS, TrainingRun

TOTAL = 100


def curve(total=TOTAL, **config):
    made = OptimConfig(**({"lr": 0.1} | config))
    return [learning_rate(made, step, total) for step in range(total)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_the_learning_rate_is_a_pure_function_of_the_step(schedule):
    config = OptimConfig(lr=0.1, schedule=schedule, warmup_steps=7)
    forward = [learning_rate(config, step, TOTAL) for step in range(TOTAL)]
    backward = [learning_rate(config, step, TOTAL) for step in reversed(range(TOTAL))]
    assert forward == backward[::-1]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_warmup_rises_in_equal_steps_to_the_peak_and_never_beyond(schedule):
    rates = curve(schedule=schedule, warmup_steps=10)
    assert rates[:10] == pytest.approx([0.01 * step for step in range(1, 11)])
    assert max(rates) == pytest.approx(0.1)
    assert rates[10] == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_a_decaying_schedule_starts_at_the_peak_never_rises_and_ends_near_but_above_zero(schedule):
    rates = curve(schedule=schedule)
    assert rates[0] == pytest.approx(0.1)
    assert all(b <= a for a, b in itertools.pairwise(rates))
    assert 0 < rates[-1] < 0.1 / 10


def test_each_schedule_has_its_shape():
    assert curve(schedule="constant") == [0.1] * TOTAL
    assert curve(schedule="linear") == pytest.approx([0.1 * (1 - s / TOTAL) for s in range(TOTAL)])
    assert curve(schedule="cosine") == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * s / TOTAL)) for s in range(TOTAL)]
    )
    wsd, flat = curve(schedule="wsd"), int(TOTAL * (1 - WSD_DECAY_SHARE))
    assert wsd[: flat + 1] == pytest.approx([0.1] * (flat + 1))
    assert wsd[flat:] == pytest.approx([0.1 * (1 - s / (TOTAL - flat)) for s in range(TOTAL - flat)])


def test_past_the_end_and_with_nothing_but_warmup_the_rate_stays_within_bounds():
    config = OptimConfig(lr=0.1, schedule="cosine", warmup_steps=10)
    assert learning_rate(config, 500, TOTAL) == pytest.approx(0.0)
    assert [learning_rate(config, step, 5) for step in range(5)] == pytest.approx(
        [0.01, 0.02, 0.03, 0.04, 0.05]
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_named_optimizer_trains_what_is_not_frozen(name, kind):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.05, weight_decay=0.01, decay="all"))
    assert isinstance(optimizer, kind)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.05, 0.01)
    assert {id(p) for p in group["params"]} == {id(p) for p in model[1].parameters()}
    before = [p.clone() for p in model.parameters()]
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [False, False, True, True]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_matrices_alone_decay_unless_all_are_to(name):
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 8), nn.LayerNorm(8))
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decays(**config):
        groups = build_optimizer(model, OptimConfig(name=name, **config)).param_groups
        return [{names[id(p)]: group["weight_decay"] for p in group["params"]} for group in groups]

    every = dict.fromkeys(names.values(), 0.1)
    spared = {name: 0.0 for name in every if name != "1.weight"}
    assert sorted(decays(weight_decay=0.1), key=len) == [{"1.weight": 0.1}, spared]
    assert decays(weight_decay=0.1, decay="all") == [every]
    assert decays(weight_decay=0.0) == [dict.fromkeys(every, 0.0)]


def test_what_does_not_decay_stays_where_it_is_without_a_gradient():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 8), nn.LayerNorm(8))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, OptimConfig(name="adamw", lr=0.1, weight_decay=0.5)).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"1.weight"}


def test_adam_makes_the_same_step_as_torchs_plain_one():
    made = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        config = OptimConfig(lr=0.05)
        optimizer = build_optimizer(model, config) if fused else torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            (model(torch.ones(3, 4)) ** 2).sum().backward()
            optimizer.step()
        made.append(model.weight.detach())
    torch.testing.assert_close(made[0], made[1])


def test_an_optimizer_works_without_the_compiler_which_takes_a_second_to_import():
    code = """
import sys, torch
from shoal.training.optimizer import OptimConfig, build_optimizer
for name in ("adam", "adamw", "sgd"):
    layer = torch.nn.Linear(4, 3)
    first, second = (build_optimizer(layer, OptimConfig(name=name)) for _ in range(2))
    layer(torch.ones(2, 4)).sum().backward()
    first.step()
    second.load_state_dict(first.state_dict())
    second.step()
    first.zero_grad()
    assert torch.is_grad_enabled() and layer.weight.requires_grad and layer.weight.grad is None
    assert "torch._dynamo" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_its_steps_are_those_of_torchs_own_class_to_the_bit(name):
    layers = [nn.Linear(8, 8) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    ours = build_optimizer(layers[0], OptimConfig(name=name, weight_decay=0.1, decay="all"))
    more = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    own_class = type(ours).__mro__[1]
    theirs = own_class(layers[1].parameters(), lr=0.001, weight_decay=0.1, fused=True, **more)
    for step in range(5):
        for layer, optimizer in zip(layers, (ours, theirs), strict=True):
            optimizer.zero_grad()
            layer(torch.full((3, 8), step + 1.0)).square().sum().backward()
            optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert ours.state_dict()["state"].keys() == theirs.state_dict()["state"].keys()


@contextlib.contextmanager
def hooked(optimizer, seen, everywhere):
    """Note each step, by hooks of the optimizer or of all optimizers."""
    register = (
        (register_optimizer_step_pre_hook, register_optimizer_step_post_hook)
        if everywhere
        else (optimizer.register_step_pre_hook, optimizer.register_step_post_hook)
    )
    handles = [
        call(lambda optimizer, args, kwargs, name=name: seen.append(name))
        for call, name in zip(register, ("pre", "post"), strict=True)
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("everywhere", [False, True], ids=["instance", "global"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_users_step_hooks_fire_before_and_after_each_step_of_a_training_until_they_are_removed(
    tmp_path, everywhere, precision
):
    run, seen = TrainingRun(tmp_path, epochs=1, precision=precision), []
    with hooked(run.loop.optimizer, seen, everywhere):
        run.train()
    assert seen == ["pre", "post"] * STEPS
    run.loop.optimizer.step()
    assert len(seen) == 2 * STEPS


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_hooks_change_no_bit_of_a_training(tmp_path, name):
    plain = TrainingRun(tmp_path / "plain", optim={"name": name}).train()
    watched = TrainingRun(tmp_path / "watched", optim={"name": name})
    with hooked(watched.loop.optimizer, [], everywhere=False):
        watched.train()
    assert watched.losses == plain.losses


def test_a_pre_hook_that_clips_is_followed_by_the_clipped_step():
    model = nn.Linear(4, 1)
    optimizer = build_optimizer(model, OptimConfig(name="sgd", lr=1.0))
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 1e-3) and None)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    moved = nn.utils.parameters_to_vector(model.parameters()) - before
    assert moved.norm().item() == pytest.approx(1.9e-3, rel=1e-3)  # Nesterov's first step


def test_hooks_of_the_state_dict_fire():
    optimizer, seen = build_optimizer(nn.Linear(2, 2), OptimConfig()), []
    optimizer.register_state_dict_pre_hook(lambda optimizer: seen.append("state_dict"))
    optimizer.register_load_state_dict_pre_hook(lambda optimizer, state: seen.append("before loading"))
    optimizer.register_load_state_dict_post_hook(lambda optimizer: seen.append("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["state_dict", "before loading", "after loading"]
