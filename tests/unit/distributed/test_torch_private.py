"""The private interfaces of torch: each is there and behaves as Shoal needs, and each fallback works without it."""

import logging
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from shoal.distributed import torch_private
from shoal.errors import ConfigError

SOURCE = Path(torch_private.__file__).resolve().parents[2]


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_dispatch_mode_sees_operations_without_importing_the_compiler():
    run(
        "import sys, torch\n"
        "from shoal.distributed.torch_private import HAS_DISPATCH_MODE, DispatchMode\n"
        "class Seen(DispatchMode):\n"
        "    def __torch_dispatch__(self, func, types, args=(), kwargs=None):\n"
        "        seen.append(func.overloadpacket)\n"
        "        return func(*args, **(kwargs or {}))\n"
        "seen = []\n"
        "with Seen():\n"
        "    torch.ones(2, 2) @ torch.ones(2, 2)\n"
        "assert HAS_DISPATCH_MODE and torch.ops.aten.mm in seen, seen\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )


@pytest.mark.long
def test_without_dispatch_modes_flops_are_counted_by_torchs_own_counter_and_memory_is_not_estimated():
    run(
        "import sys, torch, torch.utils.flop_counter\n"
        "sys.modules['torch.utils._python_dispatch'] = None\n"
        "from shoal.errors import ConfigError\n"
        "from shoal.models.activation_memory import activation_bytes\n"
        "from shoal.models.size import measure_size\n"
        "layer = torch.nn.Linear(3, 4)\n"
        "del sys.modules['torch.utils._python_dispatch']\n"
        "assert measure_size(layer, torch.ones(1, 3)).flops_per_sample == 24\n"
        "try:\n"
        "    activation_bytes(layer, torch.ones(1, 3), 'fp32')\n"
        "except ConfigError as error:\n"
        "    assert 'TorchDispatchMode' in str(error) and 'constraints.txt' in str(error)\n"
        "else:\n"
        "    raise AssertionError('it was estimated')\n"
    )


def test_attention_on_a_cpu_is_the_kernel_that_is_recognised():
    seen = []

    class Seen(torch_private.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    query = torch.ones(1, 2, 4, 8)
    with torch.no_grad(), Seen():
        nn.functional.scaled_dot_product_attention(query, query, query)
    assert [torch_private.is_cpu_attention(operation) for operation in seen].count(True) == 1


def test_without_the_attention_kernel_no_operation_is_taken_for_it(monkeypatch):
    monkeypatch.setattr(torch.ops, "aten", object())
    assert not torch_private.is_cpu_attention(None)


def test_fake_tensors_have_a_shape_and_real_ones_can_be_made_among_them():
    with torch_private.fake_tensors():
        fake = torch.ones(1 << 20, 1 << 20)  # 4 TiB
        assert (fake @ fake).shape == (1 << 20, 1 << 20)
        with torch_private.real_tensors():
            assert torch.ones(2).sum().item() == 2
    assert type(torch.ones(2)) is torch.Tensor


@pytest.mark.parametrize("make", [torch_private.fake_tensors, torch_private.real_tensors])
def test_without_fake_tensors_the_error_names_torchs_version_and_the_remedy(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "torch._subclasses.fake_tensor", None)
    with pytest.raises(ConfigError, match=rf"torch {torch.__version__[:4]}.*constraints\.txt"):
        make()


@pytest.mark.parametrize("has_bias", [True, False])
def test_onednn_multiplies_as_torch_does(has_bias):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=generator) for size in ((5, 7), (3, 7), (3,)))
    product = torch_private.onednn_linear(x, weight, bias if has_bias else None)
    torch.testing.assert_close(product, x @ weight.t() + (bias if has_bias else 0.0))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
def test_torch_has_onednns_linear_operation():
    assert torch_private.has_onednn_linear()


def test_without_onednns_operation_the_product_is_torchs_to_the_bit(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    x, weight, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    assert not torch_private.has_onednn_linear()
    assert torch.equal(torch_private.onednn_linear(x, weight, bias), nn.functional.linear(x, weight, bias))


def test_averages_move_to_the_same_bits_with_torchs_one_call_and_without(monkeypatch):
    sources = [torch.randn(9), torch.randn(2, 3)]
    targets = [[torch.ones_like(source) for source in sources] for _ in range(2)]
    assert hasattr(torch, "_foreach_lerp_")
    torch_private.lerp_(targets[0], sources, 0.3)
    monkeypatch.delattr(torch, "_foreach_lerp_")
    torch_private.lerp_(targets[1], sources, 0.3)
    assert all(torch.equal(one, other) for one, other in zip(*targets, strict=True))
    torch.testing.assert_close(targets[0][0], torch.ones(9) + 0.3 * (sources[0] - 1.0))


def test_the_compiler_can_be_kept_from_splitting_graphs():
    from torch._dynamo import config

    with config.patch(optimize_ddp=True):
        torch_private.keep_graphs_whole()
        assert config.optimize_ddp is False


def test_without_the_compilers_setting_a_warning_says_what_follows(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    torch_private.keep_graphs_whole()
    assert "splits graphs at DDP's buckets" in caplog.text


def test_the_logger_that_is_silenced_is_torchs_own():
    assert find_spec(torch_private.REDISTRIBUTION_LOGGER) is not None
    torch_private.silence_redistribution()
    assert not logging.getLogger(torch_private.REDISTRIBUTION_LOGGER).isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizers_step_is_unwrapped_and_calls_a_hook_once_there_is_one(kind):
    layer = nn.Linear(2, 1)
    optimizer = torch_private.without_wrappers(kind)(layer.parameters(), lr=0.1)
    assert type(optimizer) is not kind
    assert isinstance(optimizer, kind)
    layer(torch.ones(1, 2)).sum().backward()
    with torch.profiler.profile() as quiet:
        optimizer.step()
    called = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    with torch.profiler.profile() as marked:
        optimizer.step()
    marks = [sum("Optimizer.step" in event.name for event in found.events()) for found in (quiet, marked)]
    assert (marks, called) == ([0, 1], [1])


@pytest.mark.parametrize("missing", ["profile_hook_step"])
def test_without_torchs_wrapper_the_optimizers_class_stays_as_it_is(monkeypatch, missing):
    monkeypatch.delattr(torch.optim.Optimizer, missing)
    assert torch_private.without_wrappers(torch.optim.Adam) is torch.optim.Adam
