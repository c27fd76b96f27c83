"""The peer of `throughput.py`: torchrun, DistributedDataParallel, DataLoader with DistributedSampler.

Written after PyTorch's "Distributed and Parallel Training" tutorials. With `--tuned` it is what somebody who
knows the costs makes of it by hand: rows indexed as one tensor rather than collated one by one, fused Adam,
gradients as views of the buckets.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tuned", action="store_true")
    given = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    with np.load(given.data) as arrays:
        dataset = TensorDataset(torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["target"]))
    sampler: DistributedSampler[TensorDataset] = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=given.batch_size, sampler=sampler)
    layers = nn.Sequential(nn.Linear(1000, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    model = DistributedDataParallel(layers, gradient_as_bucket_view=given.tuned)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=given.tuned)
    loss_function = nn.CrossEntropyLoss()

    ends = []
    for epoch in range(given.epochs):
        sampler.set_epoch(epoch)
        for inputs, targets in indexed(dataset, sampler, given.batch_size) if given.tuned else loader:
            optimizer.zero_grad()
            loss = loss_function(model(inputs), targets)
            loss.backward()
            optimizer.step()
        ends.append(time.time())
    if dist.get_rank() == 0:
        given.out.write_text(json.dumps(ends))
    dist.destroy_process_group()


def indexed(
    dataset: TensorDataset, sampler: DistributedSampler[TensorDataset], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    inputs, targets = dataset.tensors
    for rows in torch.tensor(list(sampler)).split(batch_size):
        yield inputs[rows], targets[rows]


if __name__ == "__main__":
    main()
