"""What the peers of `language.py` share: sizes, the tokens, their arguments, when steps ended."""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CONTEXT, BATCH, VOCABULARY, WARM = 128, 16, 259, 10


@dataclass(frozen=True)
class Shape:
    """Of a decoder."""

    width: int
    depth: int
    heads: int


SIZES = {"1M": Shape(128, 5, 4), "10M": Shape(384, 6, 6)}
STEPS = {"1M": 100, "10M": 40}


def write_tokens(path: Path) -> None:
    """Write the tokens that Shoal trains on, one after another."""
    from shoal.data.sources.text import open_text
    from shoal.data.text import TextOptions

    source = open_text("text:stdlib", "stdlib", TextOptions(CONTEXT, "byte", 0.0, 0.001), seed=0)
    rows = [block["tokens"][:, :-1].reshape(-1) for split, block in source.blocks() if split == "train"]
    np.save(path, np.concatenate(rows))


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser()
    made.add_argument("--tokens", type=Path, required=True)
    made.add_argument("--size", choices=SIZES, required=True)
    made.add_argument("--out", type=Path, required=True)
    return made.parse_args()


def batches(tokens: np.ndarray, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, targets) [BATCH, CONTEXT] cut at random, as nanoGPT's `get_batch` does."""
    for _ in range(steps):
        starts = torch.randint(len(tokens) - CONTEXT - 1, (BATCH,)).tolist()
        rows = np.stack([tokens[start : start + CONTEXT + 1] for start in starts]).astype(np.int64)
        row = torch.from_numpy(rows)
        yield row[:, :-1], row[:, 1:]


class Ends:
    """When each step ended, in Unix seconds."""

    def __init__(self) -> None:
        self.at_s: list[float] = []

    def note(self) -> None:
        self.at_s.append(time.time())

    def write(self, out: Path) -> None:
        out.write_text(json.dumps(self.at_s))
