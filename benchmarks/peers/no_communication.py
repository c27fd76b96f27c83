"""The limit of `throughput.py`: the same two processes at once, the leanest loop, and no word between them.

Each trains a model of its own on its half of the rows. They meet once, before the first step, so that both
cores are busy throughout; what a framework adds to this, and the gradient sum, is its cost.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the rank is added to it")
    given = parser.parse_args()

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    with np.load(given.data) as arrays:
        inputs = torch.from_numpy(arrays["features"][rank::size].copy())
        targets = torch.from_numpy(arrays["target"][rank::size].copy())
    model = nn.Sequential(nn.Linear(1000, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    dist.barrier()

    ends = []
    for _ in range(given.epochs):
        for rows in torch.randperm(len(targets)).split(given.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        ends.append(time.time())
    given.out.with_suffix(f".{rank}").write_text(json.dumps(ends))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
