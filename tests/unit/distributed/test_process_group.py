"""Two and three real processes; each works through `work` below and leaves what it found in a file."""

import glob
import multiprocessing
import os
import platform
import signal
import time
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from shoal.data.loader import Batch
from shoal.distributed.process_group import ProcessGroup, SingleProcess, preserve_state
from shoal.distributed.shm_allreduce import CHUNK_BYTES
from shoal.training.accumulation import make_accumulation

CPU = torch.device("cpu")
NUMBERS = CHUNK_BYTES // 4 * 2 + 1001  # two whole chunks of float32, and some


def numbers(rank, count=1000, dtype=torch.float32):
    torch.manual_seed(rank)
    return (torch.randn(count) * 10.0 ** torch.randint(-4, 5, (count,))).to(dtype)


def in_rank_order(size, **kind):
    total = numbers(0, **kind)
    for rank in range(1, size):
        total = total + numbers(rank, **kind)
    return total


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out, self.unused = nn.Linear(8, 16), nn.Linear(16, 3), nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x):
        return self.out(torch.relu(self.hidden(x)))


class Several(Net):
    """Uses every parameter, and returns several tensors, of which the loss compares one."""

    def __init__(self):
        super().__init__()
        del self.unused

    def forward(self, x):
        hidden = torch.relu(self.hidden(x))
        return {"found": self.out(hidden), "more": (hidden, hidden.argmax(1), None)}


def net(kind=Net):
    torch.manual_seed(7)
    return kind()


def loss(module, rank):
    torch.manual_seed(100 + rank)
    outputs = module(torch.randn(4, 8))
    return ((outputs["found"] if isinstance(outputs, dict) else outputs) ** 2).sum()


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def own_gradient(rank, kind=Net):
    model = net(kind)
    loss(model, rank).backward()
    return gradients(model)


def summed_gradient(group, rank, kind=Net):
    """The gradient after the group's backward, twice: buckets may be regrouped after the first."""
    model = net(kind)
    forward = group.wrap(model, lambda module: loss(module, rank).backward())
    found = []
    for _ in range(2):
        group.before_backward(forward, loss(forward, rank)).backward()
        group.after_backward(forward)
        found.append(gradients(model))
        model.zero_grad()
    return found


class ByRank(Net):
    """Uses a layer on some ranks alone, and writes down its own rank where every forward can read it."""

    def __init__(self, rank, users):
        super().__init__()
        del self.unused  # every parameter is used when the model is wrapped
        self.sometimes, self.rank, self.users = nn.Linear(16, 16), rank, users
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x):
        hidden = torch.relu(self.hidden(x)) + self.last.sum()
        self.last += self.rank
        return self.out(hidden + self.sometimes(hidden) if self.rank in self.users else hidden)


def by_rank(rank, users):
    torch.manual_seed(7)
    return ByRank(rank, users)


def varying_use(group, rank, is_wrapped=True):
    """Gradients by name of three steps: a layer that all use, that only rank 0 uses, that none uses."""
    model = by_rank(rank, users=range(group.size))
    forward = model
    if is_wrapped:
        forward = group.wrap(model, lambda module: preserved(model, lambda: loss(module, rank).backward()))
    found = []
    for users in (range(group.size), [0], []):
        model.users = users
        group.before_backward(forward, loss(forward, rank)).backward()
        if is_wrapped:
            group.after_backward(forward)
        else:
            group.all_reduce_gradients(model)
        found.append(
            {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
        )
        for parameter in model.parameters():
            parameter.grad = None
    return found


def preserved(model, run):
    with preserve_state(model):
        run()


def part(rank, size):
    """A worker's rows of a global batch that lacks the last row."""
    torch.manual_seed(100 + rank)
    rows = torch.randn(4, 8)[: 3 if rank == size - 1 else 4]
    return Batch(rows, torch.zeros(len(rows)), count=4 * size - 1)


def step_in_micro_batches(group, rank, limit):
    """The gradient of a step in micro-batches of `limit` samples and its all-reduces; auto: rank 1 lacks memory."""
    model, seen = net(), []
    forward = model
    if limit != "auto":
        forward = group.wrap(model, lambda module: loss(module, rank).backward())
    accumulation = make_accumulation(limit, model, forward, group, group.size)

    def backward(micro_batch):
        seen.append(len(micro_batch.targets))
        if limit == "auto" and rank == 1 and len(micro_batch.targets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        total = (forward(micro_batch.inputs) ** 2).sum() * (not micro_batch.is_filler)
        total.backward()
        return total.detach()

    before = group._shared._round
    accumulation.run(part(rank, group.size), backward)
    group.after_backward(forward)
    return {"gradient": gradients(model), "reductions": group._shared._round - before, "sizes": seen}


def statistics(rank):
    """A model with the buffers of a worker that saw other data than the others."""
    torch.manual_seed(rank)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    model.register_buffer("seen", torch.tensor([rank == 0, rank == 1]))
    model(torch.randn(5 + rank, 3))
    model[0].num_batches_tracked += rank
    return model


def aligned(group, rank):
    model = statistics(rank)
    group.sync_buffers(model)
    return dict(model.named_buffers())


def work(rank, size, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    found = {}
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
        group = ProcessGroup(CPU)
        found["transport"] = group.transport
        found["float32"] = group.all_reduce(numbers(rank))
        found["float64"] = group.all_reduce(numbers(rank, dtype=torch.float64))
        found["int64"] = group.all_reduce(numbers(rank, dtype=torch.int64))
        found["large"] = group.all_reduce(numbers(rank, NUMBERS))
        mine = numbers(rank)
        group.all_reduce(mine)
        found["input is left alone"] = torch.equal(mine, numbers(rank))
        found["rounds"] = [
            group.all_reduce(torch.tensor([float(rank + round_)])).item() for round_ in range(200)
        ]
        found["gathered"] = group.gather({"rank": rank, "rest": "x" * (1000 * rank)})
        found["broadcast"] = group.broadcast({"from": rank})
        found["maps"] = [line.strip() for line in open("/proc/self/maps") if "/memfd:shoal-" in line]
        found["aligned"] = aligned(group, rank)
        frozen = net().requires_grad_(False)
        found["frozen is not wrapped"] = group.wrap(frozen, lambda module: None) is frozen
        network = ProcessGroup(CPU, shared_memory=False)
        found["network transport"] = network.transport
        found["network float64"] = network.all_reduce(numbers(rank, dtype=torch.float64))
        found["network gathered"] = network.gather(rank)
        found["gradients"] = summed_gradient(group, rank)
        found["waited_s"] = group.waited_s
        found["in micro-batches"] = {
            limit: step_in_micro_batches(group, rank, limit) for limit in (4, 2, 1, "auto")
        }
        found["network gradients"] = summed_gradient(network, rank)
        found["several outputs"] = {
            "shared": summed_gradient(group, rank, Several),
            "network": summed_gradient(network, rank, Several),
        }
        found["varying"] = {
            "shared": varying_use(group, rank),
            "shared, not wrapped": varying_use(group, rank, is_wrapped=False),
            "network": varying_use(network, rank),
            "network, not wrapped": varying_use(network, rank, is_wrapped=False),
        }
        machine, platform.machine = platform.machine, lambda: "aarch64"
        found["transport on arm"] = ProcessGroup(CPU).transport
        platform.machine = machine
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
        if rank == size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        since = time.monotonic()
        try:
            group.all_reduce(numbers(rank))
        except ConnectionError as error:
            found["loss"] = (str(error), time.monotonic() - since)
        # Whoever leaves first would be the one that the others miss.
        Path(f"{folder}/{rank}.left").touch()
        while time.monotonic() - since < 30 and len(glob.glob(f"{folder}/*.left")) < size - 1:
            time.sleep(0.02)
    except BaseException:
        found["problem"] = traceback.format_exc()
    torch.save(found, f"{folder}/{rank}.pt")
    os._exit(0)  # no goodbye to a group that has lost a member


@pytest.fixture(scope="module", params=[2, 3])
def crew(request, tmp_path_factory):
    """What each worker found, by rank."""
    size, folder = request.param, str(tmp_path_factory.mktemp("crew"))
    context = multiprocessing.get_context("forkserver")
    # Imported once: DistributedDataParallel's first use imports torch._dynamo, which takes each process seconds.
    context.set_forkserver_preload(["torch._dynamo", "torch._inductor", "pytest"])
    workers = [context.Process(target=work, args=(rank, size, folder)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=90)
        if worker.is_alive():
            worker.kill()
            worker.join()
    found = [torch.load(f"{folder}/{rank}.pt") for rank in range(size)]
    assert [result["problem"] for result in found if "problem" in result] == []
    return found


def test_processes_of_one_host_share_memory(crew):
    assert {result["transport"] for result in crew} == {"shared memory"}


def test_the_shared_file_has_no_name_on_any_disk(crew):
    for result in crew:
        assert result["maps"], "a file without a name: nothing is left of it, whenever a process is killed"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_every_worker_gets_the_very_bits_of_the_sum_in_rank_order(crew, dtype):
    expected = in_rank_order(len(crew), dtype=getattr(torch, dtype))
    for result in crew:
        assert result[dtype].dtype == expected.dtype
        assert torch.equal(result[dtype], expected)


def test_a_vector_larger_than_a_slot_is_added_in_chunks(crew):
    expected = in_rank_order(len(crew), count=NUMBERS)
    assert all(torch.equal(result["large"], expected) for result in crew)


def test_all_reduce_leaves_its_input_as_it_was(crew):
    assert all(result["input is left alone"] for result in crew)


def test_many_rounds_in_a_row_do_not_mix(crew):
    size = len(crew)
    expected = [sum(range(size)) + size * round_ for round_ in range(200)]
    assert all(result["rounds"] == expected for result in crew)


def test_values_of_any_kind_and_size_are_gathered_and_broadcast(crew):
    expected = [{"rank": rank, "rest": "x" * (1000 * rank)} for rank in range(len(crew))]
    assert all(result["gathered"] == expected for result in crew)
    assert all(result["network gathered"] == list(range(len(crew))) for result in crew)
    assert all(result["broadcast"] == {"from": 0} for result in crew)


def test_aligned_workers_have_the_buffers_of_the_first(crew):
    expected = dict(statistics(0).named_buffers())
    for result in crew:
        assert {name: tensor.dtype for name, tensor in result["aligned"].items()} == {
            name: tensor.dtype for name, tensor in expected.items()
        }
        assert all(torch.equal(result["aligned"][name], tensor) for name, tensor in expected.items())


def test_a_frozen_model_is_not_wrapped(crew):
    assert all(result["frozen is not wrapped"] for result in crew)


def test_backward_adds_the_workers_gradients_in_rank_order_bit_for_bit(crew):
    expected = own_gradient(0)
    for rank in range(1, len(crew)):
        expected = expected + own_gradient(rank)
    for result in crew:
        assert all(torch.equal(gradient, expected) for gradient in result["gradients"])
        assert result["waited_s"] > 0


@pytest.mark.parametrize("transport", ["shared", "network"])
def test_a_model_may_return_several_tensors_of_which_the_loss_uses_some(crew, transport):
    expected = sum(own_gradient(rank, Several) for rank in range(len(crew)))
    first = crew[0]["several outputs"][transport][0]
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(found, first) for result in crew for found in result["several outputs"][transport])


@pytest.mark.parametrize("limit", [4, 2, 1, "auto"])
def test_a_step_in_micro_batches_has_the_gradient_of_the_whole_batch_on_every_worker(crew, limit):
    model = net()
    rows = torch.cat([part(rank, len(crew)).inputs for rank in range(len(crew))])
    (model(rows) ** 2).sum().backward()
    first = crew[0]["in micro-batches"][limit]["gradient"]
    torch.testing.assert_close(first, gradients(model), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(result["in micro-batches"][limit]["gradient"], first) for result in crew)


def test_gradients_are_reduced_once_a_step_however_many_its_micro_batches(crew):
    for result in crew:
        found = result["in micro-batches"]
        assert [len(found[limit]["sizes"]) for limit in (4, 2, 1)] == [1, 2, 4]
        assert found[4]["reductions"] == found[2]["reductions"] == found[1]["reductions"]


def test_all_workers_halve_their_micro_batches_when_one_runs_out_of_memory(crew):
    last = len(crew) - 1
    for rank, result in enumerate(crew):
        rest = [2, 1] if rank == last else [2, 2]
        assert result["in micro-batches"]["auto"]["sizes"] == [3 if rank == last else 4, *rest]


def alone(rank, users, step, is_synced, size):
    """A worker's own gradient, by name, of a step of `varying_use`."""
    model = by_rank(rank, users)
    # Without a copy in each forward its buffer holds what this worker added; else what rank 0 did: nothing.
    model.last += 0 if is_synced else step * rank
    loss(model, rank).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("setup", ["shared", "shared, not wrapped", "network", "network, not wrapped"])
def test_a_layer_that_only_some_workers_rows_use_gets_their_gradient_on_all(crew, setup):
    size = len(crew)
    for step, users in enumerate((range(size), [0], [])):
        own = [alone(rank, users, step, "not" not in setup, size) for rank in range(size)]
        for result in crew:
            for name, found in result["varying"][setup][step].items():
                parts = [grads[name] for grads in own if grads[name] is not None]
                if parts:
                    torch.testing.assert_close(found, sum(parts), rtol=1e-5, atol=1e-5)
                    assert torch.equal(found, crew[0]["varying"][setup][step][name])


@pytest.mark.parametrize("setup", ["shared", "shared, not wrapped", "network, not wrapped"])
def test_a_layer_that_no_workers_rows_use_has_no_gradient(crew, setup):
    for result in crew:
        assert result["varying"][setup][-1]["sometimes.weight"] is None


def test_over_the_network_a_layer_that_no_workers_rows_use_has_zeros_for_a_gradient(crew):
    for result in crew:
        assert not result["varying"]["network"][-1]["sometimes.weight"].any()


def test_the_network_adds_the_same_within_rounding(crew):
    for result in crew:
        assert result["network transport"] == "gloo"
        torch.testing.assert_close(result["network float64"], in_rank_order(len(crew), dtype=torch.float64))


def test_backward_over_the_network_gives_every_worker_the_same_bits_every_time(crew):
    expected = sum(own_gradient(rank).double() for rank in range(len(crew)))
    first = crew[0]["network gradients"][0]
    torch.testing.assert_close(first.double(), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(gradient, first) for result in crew for gradient in result["network gradients"])


def test_where_stores_may_be_seen_out_of_order_the_network_is_used(crew):
    assert {result["transport on arm"] for result in crew} == {"gloo"}


def test_a_killed_worker_is_an_error_for_the_others_within_seconds(crew):
    for result in crew[:-1]:
        message, seconds = result["loss"]
        assert f"worker {len(crew) - 1} (pid" in message
        assert seconds < 10


# Without processes.


def test_a_single_process_has_nothing_to_reduce():
    single, vector, model = SingleProcess(), torch.ones(2), nn.Linear(1, 1)
    assert single.all_reduce(vector) is vector
    assert single.gather("a") == ["a"]
    assert single.broadcast("a") == "a"
    assert single.wrap(model, lambda module: 1 / 0) is model


def test_preserve_state_leaves_no_trace_in_buffers_or_random_numbers():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with preserve_state(model):
        model(torch.randn(8, 3)).sum().backward()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
