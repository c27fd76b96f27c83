import contextlib

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import train as job
from shoal.errors import ConfigError, ModelError
from shoal.models.activation_memory import _loss, _recomputing, activation_bytes, estimate_activations
from shoal.models.config import ModelConfig
from shoal.models.memory_estimate import (
    GIB,
    SINGLE_WORKER,
    LayoutEstimate,
    ParallelLayout,
    ParameterCount,
    RunEstimate,
    TrainingSetup,
    WorkerMemory,
    attention_heads,
    count_parameters,
    estimate,
    keep_tensor_part,
    layouts,
    worker_memory,
)
from shoal.models.registry import build_model
from shoal.runs.config import RunConfig
from shoal.terminal.estimate_report import estimate_report, verdict
from shoal.training.optimizer import OptimConfig
from shoal.training.optimizer_state import measure_state
from shoal.workflows.estimate import estimate_run

VOCABULARY = 259
GPT = ("gpt", (64,), {"width": 128, "depth": 5})
MODELS = [
    ("mlp", (64,), {"width": 512, "depth": 3}),
    GPT,
    ("bert", (64,), {"width": 64, "depth": 4}),
    ("resnet", (3, 16, 16), {"width": 16, "depth": 14}),
]


def make(name, shape, config):
    is_text = name in ("gpt", "bert")
    outputs, vocabulary = (VOCABULARY, VOCABULARY) if is_text else (10, 0)
    task = {"gpt": "causal_lm", "bert": "masked_lm"}.get(name, "classification")
    return build_model(ModelConfig(name=name, **config), shape, outputs, 0, vocabulary, task)


def inputs_of(name, shape, samples):
    generator = torch.Generator().manual_seed(0)
    if name in ("gpt", "bert"):
        return torch.randint(3, VOCABULARY, (samples, *shape), generator=generator)
    return torch.randn(samples, *shape, generator=generator)


def step(model, inputs, precision):
    half = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with half:
        outputs = model.train()(inputs)
    _loss(outputs).backward()


CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")


def allocated(model, inputs, precision="fp32"):
    """The most bytes that PyTorch's allocator holds between the operations of a step, besides weights and gradients.

    The workspace of a convolution is left out: a kernel allocates and frees it by itself, and which kernel runs depends
    on the CPU. One without bfloat16 instructions unfolds the images (im2col), 9 times their size for a 3x3 kernel.
    """
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(model, inputs, precision)
    events = profiler.profiler.kineto_results.events()
    inside = [(e.start_ns(), e.start_ns() + e.duration_ns()) for e in events if e.name() in CONVOLUTIONS]
    now = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        is_between = not any(start <= event.start_ns() <= end for start, end in inside)
        if is_between:
            peak = max(peak, now)
        now += event.nbytes()
        if is_between:
            peak = max(peak, now)
    return peak


PLANNED = {}


def planned(name, shape, config, samples=8, precision="fp32", workers=1):
    """Estimate what a model takes: once, although several tests look at it."""
    state = measure_state(OptimConfig(name="adamw"))
    setup = TrainingSetup(samples, workers, precision, state.per_weight, state.bytes_per_tensor)
    key = f"{name} {shape} {config} {setup}"
    if key not in PLANNED:
        dtype = inputs_of(name, shape, 1).dtype
        PLANNED[key] = estimate(lambda: make(name, shape, config), shape, dtype, setup)
    return PLANNED[key]


@pytest.mark.parametrize(
    ("name", "shape", "config", "precision"),
    [
        *((*model, "fp32") for model in MODELS),
        (*MODELS[0], "bf16"),
        *(pytest.param(*model, "bf16", marks=pytest.mark.long) for model in MODELS[1:]),
    ],
)
def test_activations_are_within_1_percent_of_what_the_allocator_holds_between_operations(
    name, shape, config, precision
):
    model, inputs = make(name, shape, config), inputs_of(name, shape, 8)
    row = planned(name, shape, config, precision=precision).layouts[0]
    assert row.plain.activations == pytest.approx(allocated(model, inputs, precision), rel=0.01)
    if row.checkpointed:
        with _recomputing(model):
            assert row.checkpointed.activations == pytest.approx(
                allocated(model, inputs, precision), rel=0.01
            )
        assert row.checkpointed.activations < 0.7 * row.plain.activations
    else:
        assert name == "mlp"


def test_a_few_of_many_equal_blocks_give_the_activations_of_all():
    inputs = inputs_of(*GPT[:2], 8)
    model = make(*GPT)
    with _recomputing(model):
        again = activation_bytes(model, inputs, "fp32")
    assert estimate_activations(make(*GPT), inputs, "fp32") == [
        activation_bytes(model, inputs, "fp32"),
        again,
    ]


def test_a_model_is_left_without_gradients_hooks_and_other_forwards():
    model = make(*GPT)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    activation_bytes(model, inputs_of(*GPT[:2], 2), "fp32")
    with _recomputing(model):
        pass
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "forward" not in vars(model.blocks[0])


def test_dropout_is_counted_as_a_gpu_keeps_it_a_byte_for_each_unit_and_the_weights_of_attention():
    def taken(dropout):
        config = {"width": 64, "depth": 3, "args": {"dropout": dropout}}
        return planned("gpt", (32,), config, samples=4).layouts[0].plain.activations

    units = 4 * 32 * 64
    outputs = units * 4  # of a dropout; the sum after it keeps neither
    masks = (1 + 2 * 3) * units
    # With dropout by row attention is computed step by step: softmax and its dropped copy, and a mask, in each block.
    attention = 3 * (4 * 32 * 32) * (4 + 4 + 1)
    assert masks + attention <= taken(0.5) - taken(0.0) <= masks + attention + 2 * outputs


def test_parameters_are_counted_in_all_by_block_and_in_embeddings():
    counted = count_parameters(make("gpt", (16,), {"width": 32, "depth": 3}))
    block = 12 * 32**2 + 13 * 32
    assert counted.units == (block,) * 3
    assert counted.embedding == VOCABULARY * 32
    assert counted.total == 3 * block + VOCABULARY * 32 + 2 * 32  # the output layer is the embedding


def test_a_step_is_three_forward_passes_over_the_batch():
    budget = planned("mlp", (64,), {"width": 32, "depth": 1}, samples=10, workers=2)
    forward = 2 * (64 * 32 + 32 * 10)
    assert (budget.flops_per_sample, budget.flops_per_step) == (forward, 3 * 10 * forward)
    assert budget.seconds(5, peak=1e6, mfu=0.5) == pytest.approx(5 * 30 * forward / (2 * 1e6 * 0.5))


def test_workers_can_share_a_model_in_the_ways_that_divide_it():
    def names(workers, own_heads):
        return [(s.name, s.data, s.tensor) for s in layouts(workers, own_heads)]

    assert names(1, 8) == [(SINGLE_WORKER, 1, 1)]
    assert names(64, 32) == [("ddp", 64, 1), ("fsdp", 64, 1), ("fsdp+tp", 8, 8)]
    assert names(8, 32) == [("ddp", 8, 1), ("fsdp", 8, 1), ("tp", 1, 8)]
    assert names(4, None) == [("ddp", 4, 1), ("fsdp", 4, 1)]


def test_fsdp_shards_everything_and_gathers_two_blocks_and_the_parameters_outside_blocks():
    held = ParameterCount(total=1000, tensors=7, units=(300, 300, 300), embedding=50)
    whole = 4 * (100 + 2 * 300)
    assert worker_memory(
        held,
        ParallelLayout("fsdp", 10, is_sharded=True),
        TrainingSetup(8, state_per_weight=2, state_per_tensor=4),
        5,
    ) == WorkerMemory(
        weights=4 * 100 + whole, gradients=4 * 100 + whole, optimizer=8 * 100 + 4 * 7, activations=5
    )
    assert worker_memory(
        held, ParallelLayout("ddp", 10), TrainingSetup(8, state_per_weight=1, state_per_tensor=0), 5
    ) == WorkerMemory(4000, 4000, 4000, 5)
    averaged = worker_memory(
        held, ParallelLayout("ddp", 10), TrainingSetup(8, state_per_weight=1, state_per_tensor=0, ema=True), 5
    )
    assert averaged == WorkerMemory(8000, 4000, 4000, 5)


def test_a_micro_batch_takes_the_activations_of_its_samples():
    config = {"width": 64, "depth": 2, "args": {"heads": 2}}
    full, micro, few = (
        report_of.layouts[0]
        for report_of in (
            estimate(lambda: make("gpt", (32,), config), (32,), torch.int64, setup)
            for setup in (TrainingSetup(64), TrainingSetup(64, micro_batch_size=8), TrainingSetup(8))
        )
    )
    assert (full.samples, micro.samples) == (64, 8)
    assert micro.plain == few.plain
    assert micro.plain.activations < full.plain.activations / 4


def test_a_tensor_parallel_group_has_the_size_that_is_set():
    assert [(s.name, s.data, s.tensor) for s in layouts(12, 8, tensor_size=2)] == [
        ("ddp", 12, 1), ("fsdp", 12, 1), ("fsdp+tp", 6, 2),
    ]  # fmt: skip


def test_tensor_parallelism_leaves_a_worker_its_part_of_the_blocks_large_layers():
    model = make("gpt", (16,), {"width": 128, "depth": 2, "args": {"heads": 4}})
    assert attention_heads(model) == 4
    whole = count_parameters(model)
    keep_tensor_part(model, 2)
    cut_weights, cut_biases = 12 * 128**2, (3 + 4) * 128
    assert whole.total - count_parameters(model).total == 2 * (cut_weights + cut_biases) // 2
    assert model(torch.ones(2, 16, dtype=torch.int64)).shape == (2, 16, VOCABULARY)
    assert attention_heads(make(*MODELS[0])) is None
    assert attention_heads(make(*MODELS[3])) is None


@pytest.mark.long
def test_a_seven_billion_parameter_model_on_64_workers_is_planned_without_its_weights():
    config = RunConfig.model_validate(
        {
            "task": "causal_lm",
            "data": {
                "source": "text:nowhere",
                "tokenizer": "bpe:50000",
                "context": 2048,
                "global_batch_size": 64,
            },
            "model": {"name": "gpt", "width": 4096, "depth": 32},
            "optim": {"name": "adamw"},
            "train": {"precision": "bf16"},
            "scale": {"num_workers": 64},
        }
    )
    budget = estimate_run(config)
    block = 12 * 4096**2 + 13 * 4096
    assert budget.parameters.total == 32 * block + 50000 * 4096 + 2 * 4096
    ddp, fsdp, tp, both = budget.layouts
    assert ddp.plain.weights == 4 * budget.parameters.total
    assert fsdp.plain.optimizer == pytest.approx(8 * budget.parameters.total / 64, rel=1e-4)
    assert (ddp.samples, fsdp.samples, tp.samples, both.samples) == (1, 1, 64, 8)
    assert fsdp.plain.activations == ddp.plain.activations
    # Shoeybi et al. 2019: 6 N D, besides attention's own 12 L H T per token.
    tokens = 64 * 2048
    expected = 6 * tokens * (32 * 12 * 4096**2 + 50000 * 4096) + 12 * 32 * 4096 * 2048 * tokens
    assert budget.flops_per_step == pytest.approx(expected, rel=0.01)
    assert (ddp.plain.device, fsdp.checkpointed.device) == (141, 16)


def row(name, data, plain, checkpointed=None):
    sizes = [WorkerMemory(gib * GIB, 0, 0, 0) if gib else None for gib in (plain, checkpointed)]
    return LayoutEstimate(ParallelLayout(name, data), 1, *sizes)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            (row("ddp", 8, 90, 90), row("fsdp", 8, 50, 20)),
            "fits 24 GiB under fsdp with activation checkpointing; not under ddp",
        ),
        ((row("ddp", 8, 90, 90), row("fsdp", 8, 70, 65)), "fits 80 GiB under fsdp; not under ddp"),
        ((row("ddp", 8, 1, 1), row("fsdp", 8, 1, 1)), "fits 16 GiB under ddp and fsdp"),
        ((row(SINGLE_WORKER, 1, 30, 20),), "fits 24 GiB with activation checkpointing"),
        ((row(SINGLE_WORKER, 1, 3),), "fits 16 GiB"),
        ((row("ddp", 8, 400, 300),), "fits no device, 300 GiB at least: lower data.global_batch_size"),
    ],
)
def test_the_verdict_names_the_smallest_device_and_who_fits_it(rows, said):
    budget = RunEstimate(ParameterCount(1, 1, (1,), 0), rows, 1, 8, rows[0].layout.data)
    assert verdict(budget).startswith(said)
    assert verdict(budget) == said or "no device" in said


def test_data_of_other_kinds_are_read_for_their_shape_and_the_steps():
    config = RunConfig.model_validate({"scale": {"num_workers": 64}, "train": {"epochs": 2}})
    assert estimate_run(config).parameters.total == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    text = estimate_report(config)
    assert "mlp: 17,226 parameters" in text
    assert "MiB of each of 64 workers at the peak" in text
    assert "all 46 steps" in text  # 1,797 rows of which 80% are learnt from, 64 at a time


@pytest.mark.parametrize(
    ("optim", "said"),
    [
        (
            {"weight_decay": 0.1},
            "0.1 of 3 matrices, 17,024 parameters; none of 3 biases, norms and embeddings, 202 parameters",
        ),
        ({"weight_decay": 0.1, "decay": "all"}, "0.1 of all 6 tensors, 17,226 parameters"),
        ({}, "none (optim.weight_decay=0)"),
    ],
)
def test_the_groups_that_decay_and_do_not_are_shown(optim, said):
    assert f"\ndecay    {said}\n" in estimate_report(RunConfig.model_validate({"optim": optim}))


def test_the_job_prints_the_budget_and_starts_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["task=causal_lm", "model.name=gpt", "data.context=32", "data.source=text:nowhere"]
    assert job.main(["--plan", "--mfu", "0.5", *settings, "train.max_steps=50", "scale.num_workers=8"]) == 0
    printed = capsys.readouterr().out
    assert "4 blocks of" in printed
    assert "reach 50% of their peak" in printed
    assert "all 50 steps" in printed
    assert printed.splitlines()[-1] == "verdict  fits 16 GiB under ddp and fsdp"
    assert list(tmp_path.iterdir()) == []


def test_a_share_of_the_peak_above_1_is_refused():
    with pytest.raises(ConfigError, match=r"--mfu=40: it is the share"):
        estimate_report(RunConfig(), mfu=40)


class ValueDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum().item() > 0 else self.layer(-x)


def test_a_model_whose_control_flow_depends_on_values_is_refused():
    with pytest.raises(ModelError, match=r"does not take inputs of shape \(1, 4\)"):
        estimate(ValueDependent, (4,), torch.float32, TrainingSetup(8))
