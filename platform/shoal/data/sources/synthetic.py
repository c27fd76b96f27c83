"""Reads `synthetic:KIND?...`: rows made from a seed."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from shoal.data.read_options import DETECTED, ReadOptions
from shoal.data.sources.base import Block, Chunks, Part, Source
from shoal.data.sources.synthetic_boxes import open_synthetic_boxes
from shoal.errors import DataError, nearest

SYNTHETIC_CHUNK = 4096  # rows that share a generator: a row is a function of its number alone
DETECTION = "detection"
ROWS = {"rows": 20000, "features": 1000, "classes": 10, "seed": 0}
# The options of each kind, whole numbers, and what they are if they are not set.
KINDS = {
    "classification": ROWS,
    "regression": ROWS,
    DETECTION: {"rows": 2500, "size": 64, "seed": 0},
}
BLOCK_BYTES = 64 << 20  # read at a time


def synthetic_block(kind: str, first: int, rows: int, features: int, classes: int, seed: int) -> Block:
    """Make rows `first` to `first + rows`, each a pure function of its number.

    Classification: class centres in a 50-dimensional space, embedded linearly, with noise in both. The classes are
    far enough apart for training to be stable, so that runs on different numbers of workers stay comparable.
    """
    latent = min(50, features)
    world = np.random.default_rng([seed, 0])
    embed = world.standard_normal((latent, features), dtype=np.float32) / np.float32(np.sqrt(latent))
    centres = world.standard_normal((classes, latent), dtype=np.float32) * np.float32(1.5)
    weights = world.standard_normal(latent, dtype=np.float32)
    parts = []
    for chunk in range(first // SYNTHETIC_CHUNK, -(-(first + rows) // SYNTHETIC_CHUNK)):
        draw = np.random.default_rng([seed, 1, chunk])
        target = draw.integers(0, classes, SYNTHETIC_CHUNK)
        point = draw.standard_normal((SYNTHETIC_CHUNK, latent), dtype=np.float32)
        if kind == "classification":
            point += centres[target]
        noise = draw.standard_normal((SYNTHETIC_CHUNK, features), dtype=np.float32)
        value = target if kind == "classification" else point @ weights + np.tanh(point[:, 0])
        begin, end = max(first - chunk * SYNTHETIC_CHUNK, 0), first + rows - chunk * SYNTHETIC_CHUNK
        parts.append(((point @ embed + noise)[begin:end], value[begin:end]))
    return {
        "features": np.concatenate([part[0] for part in parts]),
        "target": np.concatenate([part[1] for part in parts]),
    }


def synthetic_options(uri: str) -> dict[str, Any]:
    """Parse `synthetic:KIND?NAME=...&NAME=...`, of the options of the kind."""
    kind, _, query = uri.removeprefix("synthetic:").partition("?")
    if kind == "speech":
        raise DataError(
            f"data.source='{uri}' holds recordings: set task=speech_recognition, or name other data"
        )
    if kind not in KINDS:
        raise DataError(
            f"data.source='{uri}': '{kind}' is not a synthetic set{nearest(kind, KINDS)}: write "
            f"{', '.join(f'synthetic:{name}' for name in KINDS)}"
        )
    return {"kind": kind, **parse_options(uri, query, KINDS[kind])}


def parse_options(uri: str, query: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Parse `NAME=...&NAME=...`, whole numbers, of the options that there are.

    Raises:
        DataError: a name is not known, or a number is out of its range.
    """
    options = dict(defaults)
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in options or not text.isdecimal() or (name != "seed" and int(text) < 1):
            raise DataError(
                f"data.source='{uri}': {name}={text or '(nothing)'} is not understood: "
                f"set {', '.join(options)} to whole numbers from 1"
            )
        options[name] = int(text)
    return options


def open_synthetic(uri: str, _: str, __: ReadOptions = DETECTED) -> Source:
    options = synthetic_options(uri)
    if options["kind"] == DETECTION:
        return open_synthetic_boxes(uri, options["rows"], options["size"], options["seed"])
    rows, size = options.pop("rows"), options["features"] * 4 + 8
    step = max(SYNTHETIC_CHUNK, BLOCK_BYTES // size // SYNTHETIC_CHUNK * SYNTHETIC_CHUNK)

    def read(number: int) -> Iterator[Block]:
        first = number * step
        yield synthetic_block(first=first, rows=min(step, rows - first), **options)

    chunks = Chunks(-(-rows // step), read)
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    part = Part(chunks.blocks, chunks=lambda: chunks)
    return Source(uri, "synthetic", (part,), nbytes=rows * size, digest=digest)
