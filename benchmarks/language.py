"""Measures language-model training: Shoal against a plain PyTorch loop and transformers' Trainer, tokens per second.

A decoder of about 1 and 10 million parameters on the source of Python's standard library, bytes as tokens, context
128, 16 sequences per step and worker, AdamW, one thread each. The plain loop trains Shoal's own model class, as
nanoGPT's script trains its: batches cut at random out of one array of tokens. transformers' Trainer trains its GPT-2
of the same width, depth, heads and vocabulary; positions are learned, as GPT-2's are, in all of them. The measure is
the same for all: tokens trained divided by the wall seconds between the end of step `WARM` and the end of the last one,
with nothing evaluated between. On AMD's CPUs Shoal multiplies by oneDNN, which it does by itself for any user's model;
the peers do as PyTorch does. Shoal alone records every step and writes checkpoints meanwhile. At two workers the
global batch is twice as large.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness import PEERS, Figure, Report, Row, main, progress, ratios, ray_cluster, run, run_shoal, scratch
from peers.language_workload import BATCH, CONTEXT, SIZES, STEPS, WARM, write_tokens
from quiet import Quiet, Timing


def peer(name: str, size: str, folder: Path) -> Timing:
    """Return the tokens per second of a peer."""
    out = folder / f"{name}.json"
    run(
        [
            sys.executable,
            str(PEERS / f"{name}.py"),
            f"--tokens={folder / 'tokens.npy'}",
            f"--size={size}",
            f"--out={out}",
        ]
    )
    return rate(json.loads(out.read_text()), 1)


def shoal(workers: int, size: str, folder: Path) -> Timing:
    """Return the tokens per second of `jobs/train.py`."""
    shape = SIZES[size]
    settings = [
        "task=causal_lm", "data.source=text:stdlib", f"data.context={CONTEXT}", "model.name=gpt",
        f"model.width={shape.width}", f"model.depth={shape.depth}",
        f"model.args={{heads: {shape.heads}, positions: learned}}",
        f"data.global_batch_size={workers * BATCH}", f"scale.num_workers={workers}", "optim.name=adamw",
        "data.validation_fraction=0", "data.test_fraction=0.001", f"train.max_steps={STEPS[size]}",
    ]  # fmt: skip
    with ray_cluster() as cluster:
        done = run_shoal(folder, cluster.address, *settings)
    return rate([done.step_ends_s[step] for step in range(1, STEPS[size] + 1)], workers)


def rate(ends_s: list[float], workers: int) -> Timing:
    """Return tokens per second from the ends of steps."""
    steps = len(ends_s) - WARM
    seconds = ends_s[-1] - ends_s[WARM - 1]
    return Timing(steps * workers * BATCH * CONTEXT / seconds, ends_s[WARM - 1], ends_s[-1])


def measure(repeat: int) -> Report:
    quiet = Quiet()
    rows: list[Row] = []
    figures: list[Figure] = []
    with scratch() as folder:
        write_tokens(folder / "tokens.npy")
        for size in SIZES:
            contestants: dict[str, Callable[[], Timing]] = {
                "plain loop": partial(peer, "language_loop", size, folder),
                "Shoal, 1 worker": partial(shoal, 1, size, folder),
                "transformers.Trainer": partial(peer, "language_trainer", size, folder),
                "Shoal, 2 workers": partial(shoal, 2, size, folder),
            }
            rates: dict[str, list[float]] = {name: [] for name in contestants}
            for number in range(repeat):
                for name, contestant in contestants.items():
                    rates[name].append(quiet.value(contestant))
                    progress(f"{size} round {number + 1}/{repeat}: {name} {rates[name][-1]:,.0f} tokens/s")
            rows += [Row(f"{size}: {name}", values, "tokens/s") for name, values in rates.items()]
            one = rates["Shoal, 1 worker"]
            for name, ours, theirs, target in (
                ("against a plain loop", one, rates["plain loop"], 1.0),
                ("against transformers.Trainer", one, rates["transformers.Trainer"], 1.2),
                ("2 workers against 1", rates["Shoal, 2 workers"], one, 1.6),
            ):
                share = Row(f"{size}: {name}", ratios(ours, theirs), "x")
                rows.append(share)
                figures.append(Figure(share.name, share.median, target, is_at_least=True))
    return Report("Language-model training", rows, figures, [quiet.note])


if __name__ == "__main__":
    main(measure, repeat=3)
