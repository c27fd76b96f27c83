import contextlib
import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from shoal.config.schema import build_config
from shoal.errors import ConfigError, ModelError, UserError
from shoal.training.lr_schedule import WSD_DECAY_SHARE, check_schedule, learning_rate, make_schedule
from shoal.training.optimizer import OPTIMIZERS, REFUSED, OptimConfig, build_optimizer, check_optimizer
from shoal.training.optimizer_state import check_state, equal_trees, state_by_number
from training_run import STEPS, TrainingRun, assert_resumes_exactly

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
for name in ("adam", "adamw", "sgd", "nadam", "rmsprop"):
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


def assert_equal_steps(layers, optimizers):
    for step in range(5):
        for layer, optimizer in zip(layers, optimizers, strict=True):
            optimizer.zero_grad()
            layer(torch.full((3, 8), step + 1.0)).square().sum().backward()
            optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_its_steps_are_those_of_torchs_own_class_to_the_bit(name):
    layers = [nn.Linear(8, 8) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    ours = build_optimizer(layers[0], OptimConfig(name=name, weight_decay=0.1, decay="all"))
    more = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {}
    own_class = type(ours).__mro__[1]
    theirs = own_class(layers[1].parameters(), lr=0.001, weight_decay=0.1, fused=True, **more)
    assert_equal_steps(layers, (ours, theirs))
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


OTHERS = [name for name in OPTIMIZERS if name not in ("adam", "adamw", "sgd", *REFUSED)]


def test_every_optimizer_of_torch_is_usable_or_refused_with_a_remedy():
    for name in OPTIMIZERS:
        if name in REFUSED:
            with pytest.raises(ConfigError, match=f"optim.name='{name}' does not work here: .*take adam"):
                build_config(OptimConfig, {"name": name})
        else:
            assert OptimConfig(name=name).name == name


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_optimizers_make_torchs_steps_to_the_bit(name):
    layers = [nn.Linear(8, 8) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    ours = build_optimizer(layers[0], OptimConfig(name=name, lr=0.01, args={"maximize": True}))
    theirs = OPTIMIZERS[name](layers[1].parameters(), lr=0.01, maximize=True)
    assert_equal_steps(layers, (ours, theirs))


@pytest.mark.parametrize("spelled", ["AdamW", "adam_w", "adamw", "RMSprop", "rms_prop"])
def test_an_optimizer_goes_by_its_name_however_it_is_spelled(spelled):
    assert OptimConfig(name=spelled).name == spelled.lower().replace("_", "")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"name": "adan"}, "'adan' is not known .did you mean 'adam'.*package.module:Optimizer"),
        (
            {"args": {"beta": [0.9, 0.95]}},
            "'beta', which optim.name='adam' does not take .did you mean 'betas'",
        ),
        ({"args": {"lr": 0.1}}, "optim.args names 'lr', which is a key itself: set optim.lr"),
        ({"args": {"betas": [2.0, 0.9]}}, "refuses its options.*Invalid beta parameter at index 0: 2.0"),
        ({"name": "rprop", "weight_decay": 0.1}, "takes no 'weight_decay'"),
        ({"groups": {"*": {"lr": "fast"}}}, r"optim.groups\['\*'\].lr='fast': it should be a number"),
        ({"groups": {"*": {"rho": 1.0}}}, r"optim.groups\['\*'\] names 'rho', which optim.name='adam'"),
        ({"schedule": "cosinus"}, "'cosinus' is not known .did you mean 'cosine'"),
        ({"schedule": "mine:rate", "warmup_steps": 5}, "leave optim.warmup_steps out"),
    ],
)
def test_what_an_optimizer_does_not_take_is_refused_when_the_config_is_read(config, says):
    with pytest.raises(ConfigError, match=says):
        build_config(OptimConfig, config)


def test_options_reach_the_optimizer_and_sgd_loses_its_momentum_only_where_one_is_set():
    layer = nn.Linear(2, 2)
    (group,) = build_optimizer(layer, OptimConfig(args={"betas": [0.8, 0.95], "eps": 1e-6})).param_groups
    assert (list(group["betas"]), group["eps"], group["fused"]) == ([0.8, 0.95], 1e-6, True)
    (group,) = build_optimizer(layer, OptimConfig(name="sgd", args={"nesterov": False})).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, False)
    (group,) = build_optimizer(layer, OptimConfig(name="sgd", args={"momentum": 0.0})).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.0, False)


def test_groups_have_their_own_rates_and_options_and_the_first_pattern_counts(tmp_path):
    groups = {"enter": {"lr": 0.001, "betas": [0.5, 0.9]}, "*.bias": {"weight_decay": 0.0}}
    run = TrainingRun(
        tmp_path,
        optim={"lr": 0.01, "weight_decay": 0.1, "decay": "all", "groups": groups, "schedule": "linear"},
    )
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    run.train()
    share = run.loop.learning_rate(run.progress.step - 1) / 0.01
    found = {}
    for group in run.loop.optimizer.param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr"] / share, group["weight_decay"], group["betas"][0])
    assert found["enter.weight"] == found["enter.bias"] == (pytest.approx(0.001), 0.1, 0.5)
    assert found["leave.bias"] == (pytest.approx(0.01), 0.0, 0.9)
    assert found["leave.weight"] == (pytest.approx(0.01), 0.1, 0.9)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({"encoder": {}}, r"'encoder', which matches no parameter.*the model has 0.weight, 0.bias, 1.weight"),
        ({"*": {}, "1.*": {}}, r"'1.\*', whose parameters earlier patterns match already"),
        ({"0": {}}, "'0', whose parameters are frozen already"),
    ],
)
def test_a_pattern_that_decides_nothing_is_refused(groups, says):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    with pytest.raises(ModelError, match=f"optim.groups names {says}"):
        build_optimizer(model, OptimConfig(groups=groups))


def test_a_tied_weight_goes_by_each_of_its_names():
    model = nn.Module()
    model.embed, model.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    model.head.weight = model.embed.weight
    (group,) = build_optimizer(model, OptimConfig(groups={"head": {"lr": 0.5}})).param_groups
    assert group["lr"] == 0.5


@pytest.mark.parametrize("name", OTHERS)
def test_every_optimizer_resumes_to_the_bit(tmp_path, name):
    optim = {"name": name, "groups": {"leave": {"lr": 0.002}}, "schedule": "cosine"}
    assert_resumes_exactly(lambda run, **more: TrainingRun(tmp_path / run, optim=optim, **more))


OWN = """
import torch

class Counting(torch.optim.Optimizer):
    '''Its state lies in texts, lists and groups, and the rate depends on all of it.'''

    def __init__(self, params, lr, weight_decay=0.0, decay=1.0):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, decay=decay, steps=0))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["steps"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state.setdefault("history", []).append(round(float(p.grad.norm()), 6))
                state["note"] = "even" if len(state["history"]) % 2 == 0 else "odd"
                scale = group["decay"] ** group["steps"] * (2.0 if state["note"] == "even" else 1.0)
                p.sub_(p.grad, alpha=group["lr"] * scale / (1.0 + sum(state["history"]) / 100))

class Forgets(Counting):
    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, lr, weight_decay)
        self.moments = {}

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["when"] = __import__("datetime").date(2020, 1, 1)

class NeedsClosure(torch.optim.SGD):
    def step(self, closure):
        super().step(closure)

def function(params, lr, decay=1.0):
    return Counting(params, lr, decay=decay)

def flat(params, lr):
    return torch.optim.SGD([p for group in params for p in group["params"]], lr=lr)

def number(params, lr):
    return 3

class Layer(torch.nn.Linear):
    pass

def rate(step, total_steps):
    return 1.0 - step / total_steps

def negative(step, total_steps):
    return 1.0 - step

def sphere(total_steps):
    return 1.0
"""


@pytest.mark.parametrize("name", ["Counting", "function"])
def test_an_optimizer_of_a_users_own_with_state_of_any_kind_resumes_to_the_bit(tmp_path, user_module, name):
    optim = {"name": f"{user_module(OWN)}:{name}", "args": {"decay": 0.99}, "lr": 0.1}
    twin, resumed = assert_resumes_exactly(
        lambda run, **more: TrainingRun(tmp_path / run, optim=optim, **more)
    )
    assert equal_trees(state_by_number(twin.loop.optimizer), state_by_number(resumed.loop.optimizer))
    assert twin.loop.optimizer.param_groups[0]["steps"] == twin.progress.step


def test_options_that_the_config_changes_on_resume_stay_as_the_config_has_them(tmp_path, user_module):
    name = f"{user_module(OWN)}:Counting"
    run = TrainingRun(tmp_path, optim={"name": name, "args": {"decay": 0.99}}).train()
    other = TrainingRun(tmp_path, optim={"name": name, "args": {"decay": 0.5}}).resume()
    (group,) = other.loop.optimizer.param_groups
    assert (group["decay"], group["steps"]) == (0.5, run.progress.step)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NeedsClosure", r"NeedsClosure.step\(\) needs closure, and a step here is one forward and backward"),
        ("Layer", "is the class Layer, no torch.optim.Optimizer"),
        ("flat", "made other groups of the parameters than it received"),
        ("number", "returned a int: return a torch.optim.Optimizer"),
        ("Counting_", "has no 'Counting_' .did you mean 'Counting'"),
    ],
)
def test_what_is_no_optimizer_is_refused_with_the_reason(user_module, name, says):
    config = OptimConfig(name=f"{user_module(OWN)}:{name}")

    def check():
        check_optimizer(config)
        build_optimizer(nn.Linear(2, 2), config)

    with pytest.raises(UserError, match=says):
        check()


def test_state_that_a_checkpoint_does_not_hold_is_refused(user_module):
    config, layer = OptimConfig(name=f"{user_module(OWN)}:Forgets"), nn.Linear(2, 2)
    optimizer, fresh = (build_optimizer(layer, config) for _ in range(2))
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with pytest.raises(
        ConfigError, match=r"of its state_dict\(\), \['state'\]\[0\]\['when'\] is a date: keep"
    ):
        check_state(optimizer, fresh, config.name)


def test_a_schedule_of_a_users_own_is_a_factor_of_the_rate(user_module):
    name = user_module(OWN)
    rate = make_schedule(OptimConfig(lr=0.1, schedule=f"{name}:rate"), TOTAL)
    assert [rate(step) for step in range(TOTAL)] == [0.1 * (1.0 - step / TOTAL) for step in range(TOTAL)]
    for function, says in (("negative", "returned -1.0 at step 2 of 100"), ("sphere", "raised TypeError")):
        with pytest.raises(ConfigError, match=says):
            check_schedule(OptimConfig(schedule=f"{name}:{function}"), TOTAL)
