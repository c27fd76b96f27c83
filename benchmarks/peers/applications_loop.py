"""The peer of `applications.py`: a plain PyTorch loop over Shoal's model, loss and metric, until a target.

It takes a config of Shoal's and its rows, keeps them in memory, shuffles them anew in each epoch, and updates by
PyTorch's AdamW. It records nothing and writes no checkpoint.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from shoal.config.loading import load
from shoal.data.dataset_info import inspect_source
from shoal.data.loader import Batch
from shoal.data.partition import partition_source
from shoal.data.sampler import TRAIN, VALIDATION
from shoal.models.call import call_model
from shoal.models.inputs import view_of_rows
from shoal.models.registry import build_model_for
from shoal.runs.config import RunConfig
from shoal.tasks.accumulator import Accumulator
from shoal.tasks.base import Task, View
from shoal.tasks.metrics import reaches
from shoal.tasks.open_data import open_data, preprocessing_spec
from shoal.tasks.registry import make_task
from shoal.training.lr_schedule import learning_rate


def prepare(config: RunConfig) -> tuple[nn.Module, Task, View, dict[str, tuple[Tensor, Tensor]]]:
    """Return the model, the task, how stored rows become what the model takes, and the rows of each split."""
    source = open_data(config.data, config.task, config.seed)
    spec = preprocessing_spec(config.data, config.task, config.seed, source)
    info = inspect_source(source, spec)
    task = make_task(config.task, info.transform, config.data, config.seed, config.train)
    model = build_model_for(config.model, info.transform, config.task, config.seed)
    of_model = view_of_rows(info.transform, model)

    def view(batch: Batch, epoch: int | None) -> Batch:
        batch = batch if info.transform.is_stored_as_taken else of_model(batch, epoch)
        batch = task.view(batch, epoch) if task.view else batch
        return replace(batch, terms=float(task.terms(batch))) if task.counts_terms else batch

    held = partition_source(source, spec, info, 1)[0]
    rows = {name: (torch.from_numpy(x), torch.from_numpy(y)) for name, (x, y) in held.items()}
    return model, task, view, rows


def batches(rows: tuple[Tensor, Tensor], size: int, order: Tensor) -> Iterator[Batch]:
    """Yield the rows in an order."""
    for index in order.split(size):
        yield Batch(rows[0][index], rows[1][index], len(index))


def evaluate(
    model: nn.Module, task: Task, view: View, rows: tuple[Tensor, Tensor], size: int
) -> dict[str, float]:
    """Return the metrics of a split."""
    found = Accumulator(task, torch.device("cpu"))
    model.eval()
    with torch.no_grad():
        for stored in batches(rows, size, torch.arange(len(rows[1]))):
            batch = view(stored, None)
            found.add(found.part(call_model(model, batch.inputs), batch))
    model.train()
    return {f"val/{name}": value for name, value in found.results().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    config = load(RunConfig, given.config, given.settings)
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    model, task, view, rows = prepare(config)
    size = config.data.global_batch_size
    steps = config.train.epochs * -(-len(rows[TRAIN][1]) // size)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.optim.lr, weight_decay=config.optim.weight_decay, fused=True
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(config.optim, min(step, steps - 1), steps) / config.optim.lr
    )
    at_a_time = task.held_out_rows.at_a_time(size)
    first_s, step = 0.0, 0
    for epoch in range(config.train.epochs):
        for stored in batches(rows[TRAIN], size, torch.randperm(len(rows[TRAIN][1]))):
            batch = view(stored, epoch)
            loss = task.loss(call_model(model, batch.inputs), batch) / batch.divisor
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.optim.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
            optimizer.step()
            rate.step()
            step += 1
            first_s = first_s or time.time()
        metrics = evaluate(model, task, view, rows[VALIDATION], at_a_time)
        if all(reaches(name, metrics[name], bound) for name, bound in config.train.target.items()):
            given.out.write_text(
                json.dumps({"first_s": first_s, "reached_s": time.time(), "steps": step, **metrics})
            )
            return
    raise SystemExit(f"not reached: {metrics}")


if __name__ == "__main__":
    main()
