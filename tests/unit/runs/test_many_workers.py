"""What is decided for 1,024 workers on 128 hosts: the order, the division of rows, the size, hangs and retries."""

from itertools import pairwise

import numpy as np

from shoal.cluster.elastic import SETTLE_S, Settling, choose_size
from shoal.cluster.free_room import Room, describe_wait, fits
from shoal.data.sampler import Lanes
from shoal.runs.failure_policy import Fault, decide
from shoal.runs.hang import WorkerStatus, find_hang
from shoal.storage.records import FailedWorker

WORKERS, HOSTS = 1024, 128
ROWS, BATCH = 200_003, 4096
NEEDS = {"CPU": 4.0, "GPU": 1.0}
HOST = {"CPU": 64.0, "GPU": 8.0}


def test_each_row_has_one_worker_whose_shares_are_equal_and_whose_batches_are_those_of_one():
    rows, alone = np.arange(ROWS), Lanes(ROWS, BATCH, seed=0)
    owners = Lanes(ROWS, BATCH, 0, 0, WORKERS).owner(rows)
    counts = np.bincount(owners, minlength=WORKERS)
    assert len(counts) == WORKERS
    assert counts.max() - counts.min() <= BATCH // WORKERS

    together = [[] for _ in range(alone.steps)]
    for worker in range(WORKERS):
        lanes = Lanes(ROWS, BATCH, 0, worker, WORKERS)
        seen = rows[owners == worker][lanes.epoch(2)]
        assert lanes.width == BATCH // WORKERS
        for batch, first in enumerate(range(0, len(seen), lanes.width)):
            together[batch] += seen[first : first + lanes.width].tolist()
    order = alone.epoch(2)
    assert [sorted(batch) for batch in together] == [
        sorted(order[first:until].tolist()) for first, until in pairwise([*range(0, ROWS, BATCH), ROWS])
    ]


def test_the_size_follows_the_hosts_that_are_there():
    sizes = range(8, WORKERS + 1, 8)
    assert choose_size(HOSTS * fits(NEEDS, HOST), sizes) == WORKERS
    room = (HOSTS - 3) * fits(NEEDS, HOST) - 5
    settling = Settling(sizes)
    assert settling.see(room, 0.0) is None
    assert settling.see(room, SETTLE_S) == 992
    there = Room(NEEDS, [HOST] * 125, {}, frozenset(f"host-{number}" for number in range(125)), True)
    words = describe_wait(there, WORKERS, frozenset(f"host-{number}" for number in range(HOSTS)))
    assert words is not None
    assert words.endswith("host host-127 is gone; waiting for 24 GPU (1000 of 1024 there)")


def test_one_lost_host_is_one_failure_with_one_root_and_is_tried_again():
    lost = [
        Fault(
            FailedWorker(rank=rank, host=f"host-{rank // 8}", step=70, type="WorkerDied", message="gone"),
            "died",
        )
        for rank in range(40, 48)
    ]
    peers = [
        Fault(
            FailedWorker(rank=rank, host=f"host-{rank // 8}", step=70, type="RuntimeError", message="x"),
            "lost its peer",
        )
        for rank in range(WORKERS)
        if not 40 <= rank < 48
    ]
    decision = decide([*peers, *lost], None, 60, 3)
    assert decision.retries
    assert decision.record.failures == 1
    assert decision.record.root.rank == 40
    assert len(decision.record.cascade) == WORKERS - 1
    assert len(decision.record.message) < 300


def test_the_one_that_all_others_wait_for_is_found():
    waits = '  File "/x/shoal/distributed/shm_allreduce.py", line 9, in _wait\n'
    statuses = [
        WorkerStatus(
            rank=rank, host=f"host-{rank // 8}", node="n", pid=1, log="", section="step", step=7 - (rank == 700),
            stay_s=60.0, slowest_s=0.1, stack=waits,
        )
        for rank in range(WORKERS)
    ]  # fmt: skip
    hang = find_hang(statuses, WORKERS)
    assert hang is not None
    assert hang.root is not None
    assert hang.root.rank == 700
