"""What kinds of devices are called in torch and in Ray, which are refused, and which one a worker has."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from shoal import devices
from shoal.devices import CPU, CUDA, KINDS, assigned_device, find
from shoal.errors import ConfigError
from shoal.runs.config import ScaleConfig
from shoal.runs.machine import check_local, check_resources


@pytest.mark.parametrize(
    ("accelerator", "resources", "backend"),
    [
        ("cpu", {}, "gloo"),
        ("cuda", {"GPU": 1.0}, "nccl"),
        ("xpu", {"GPU": 1.0}, "xccl"),
        ("mps", {"GPU": 1.0}, "gloo"),
        ("npu", {"NPU": 1.0}, "hccl"),
        ("hpu", {"HPU": 1.0}, "hccl"),
        ("tpu", {"TPU": 1.0}, "tpu_dist"),
    ],
)
def test_a_kind_says_what_ray_and_the_process_group_are_asked_for(accelerator, resources, backend):
    kind = KINDS[accelerator]
    assert (kind.type, kind.resources, kind.backend) == (accelerator, resources, backend)


@pytest.mark.parametrize(
    ("kind", "ids", "environment", "device"),
    [
        (CPU, [], {}, "cpu"),
        (CUDA, ["5"], {"CUDA_VISIBLE_DEVICES": "2,5,7"}, "cuda:1"),
        (CUDA, ["7"], {"HIP_VISIBLE_DEVICES": "5,7"}, "cuda:1"),  # of AMD
        (CUDA, [], {"CUDA_VISIBLE_DEVICES": "2,5,7"}, "cuda:0"),  # a process that Ray assigned none
        (KINDS["npu"], ["3"], {"ASCEND_RT_VISIBLE_DEVICES": "3"}, "npu:0"),
        (KINDS["mps"], ["0"], {}, "mps:0"),
    ],
)
def test_a_worker_has_the_device_that_ray_assigned_to_it(monkeypatch, kind, ids, environment, device):
    for name in (name for other in KINDS.values() for name in other.visible):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        torch, "device", lambda type, index=0: f"{type}:{index}"
    )  # names that no package registered
    assert str(assigned_device(kind, ids)) == device


def test_where_there_is_no_other_device_auto_is_the_cpu_and_has_float64():
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    assert find("auto") is find("cpu") is CPU
    assert devices.place_of_sums(torch.device("cpu")) == torch.device("cpu")
    assert (devices.names(), devices.memory_in_use(), devices.peak_bytes(torch.device("cpu"))) == (
        [],
        None,
        None,
    )
    assert devices.rng_states() == {"cuda": None}


@pytest.mark.parametrize("accelerator", ["cuda", "xpu", "mps"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_device_that_is_absent_is_refused_with_a_remedy(accelerator, workers):
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    with pytest.raises(ConfigError, match=rf"accelerator={accelerator} needs .* finds none .*: .*=auto"):
        check_local(ScaleConfig(num_workers=workers, accelerator=accelerator), None)


@pytest.mark.parametrize("accelerator", ["npu", "hpu", "tpu"])
def test_a_package_that_is_absent_is_refused_by_its_name(accelerator):
    package = KINDS[accelerator].package
    with pytest.raises(ConfigError, match=rf"needs the package {package}, which is not installed: .*=auto"):
        check_local(ScaleConfig(num_workers=0, accelerator=accelerator), None)


def test_a_package_that_does_not_load_is_refused_with_the_reason(monkeypatch, tmp_path):
    (tmp_path / "torch_npu.py").write_text("raise OSError('libhccl.so: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"torch_npu, which does not work \(OSError: libhccl.so: no such file\)"
    ):
        find("npu")


def test_a_package_without_a_device_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_tpu", ModuleType("torch_tpu"))
    with pytest.raises(ConfigError, match="accelerator=tpu needs such a device"):
        find("tpu")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"accelerator": "cpu", "use_gpu": True}, "the CPU is no GPU"),
        ({"accelerator": "npu", "use_gpu": False}, "asks for a device and for none"),
        ({"accelerator": "mps", "num_workers": 2}, "a machine has one such device"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ScaleConfig(**settings)


def test_a_cluster_with_too_few_devices_is_refused_by_rays_name_of_them():
    with pytest.raises(ConfigError) as caught:
        check_resources(ScaleConfig(num_workers=2, accelerator="npu"), 8, 1, "the cluster", 0, "NPU")
    assert str(caught.value) == (
        "scale.num_workers=2 with scale.accelerator=npu needs 2 NPUs and the cluster has 1: lower scale.num_workers, "
        "or set scale.accelerator=auto"
    )


def test_moving_a_model_keeps_shared_parameters_shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    twin = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    twin.to = lambda device: [setattr(layer, "weight", nn.Parameter(layer.weight.clone())) for layer in twin]
    twin[1].weight = twin[0].weight  # a device on which torch makes a parameter for each module
    for moved in (model, twin):
        devices.move(moved, torch.device("cpu"))
        assert moved[0].weight is moved[1].weight
