"""Reads recordings and pictures, as a run does, beside a bare loop over soundfile and over Pillow; in CPU time.

What is read is all from the list of files to rows in memory: recordings with the checks that precede a training,
pictures at their own size. In each round Shoal and its peer read in turn, each in a process of its own; imports do not
count. The ratio is taken within a round.

Recordings are sentences of 2.5 s in FLAC, and single words of half a second in WAV, as the digits of a telephone are:
there, what a file costs beside its samples counts most, and no aim is set.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from harness import Figure, Report, Row, environment, main, progress, ratios, run

WORDS, SENTENCES = ("wav", 8000, 0.5), ("flac", 16_000, 2.5)  # format, samples per second, seconds
CLASSES, ROWS = 10, 3000
SPEECH = "task=speech_recognition model.name=speech"
IMAGES = "task=image_classification model.name=resnet"
LEAST = 0.9  # of the rows that a bare loop reads in the same time

SHOAL = """
import json, sys, time
from shoal.config.loading import load
from shoal.runs.config import RunConfig
from shoal.tasks.open_data import open_data
import shoal.data.sources.boxes, shoal.data.sources.images, soundfile, PIL.Image, PIL.PngImagePlugin, scipy.signal
config = load(RunConfig, None, sys.argv[1].split())
cpu = time.process_time()
source = open_data(config.data, config.task, config.seed)
rows = sum(len(next(iter(block.values()))) for part in source.parts for block in part.read())
print(json.dumps([rows, time.process_time() - cpu]))
"""
SOUNDFILE = """
import csv, json, sys, time
from pathlib import Path
import numpy, soundfile
cpu = time.process_time()
folder = Path(sys.argv[1])
waves = [soundfile.read(folder / row["path"], dtype="int16") for row in csv.DictReader((folder / "all.csv").open())]
print(json.dumps([len(waves), time.process_time() - cpu]))
"""
PILLOW = """
import json, sys, time
from pathlib import Path
import numpy, PIL.Image, PIL.PngImagePlugin
cpu = time.process_time()
found = [numpy.asarray(PIL.Image.open(path)) for path in sorted(Path(sys.argv[1]).glob("*/*.png"))]
pixels = numpy.stack(found)
print(json.dumps([len(pixels), time.process_time() - cpu]))
"""


def write_recordings(folder: Path, kind: tuple[str, int, float], rows: int) -> None:
    """Write recordings of a kind, and their list."""
    import soundfile

    suffix, rate, seconds = kind
    random = np.random.default_rng(0)
    folder.mkdir()
    lines = ["path,sentence"]
    for row in range(rows):
        wave = random.normal(0, 0.1, int(rate * seconds))
        soundfile.write(folder / f"{row}.{suffix}", wave, rate, "PCM_16")
        lines.append(f"{row}.{suffix},{['one', 'two', 'three'][row % 3]}")
    (folder / "all.csv").write_text("\n".join(lines))


def write_pictures(folder: Path, rows: int) -> None:
    """Write pictures of 64 by 64 pixels, in a folder for each class."""
    import PIL.Image

    random = np.random.default_rng(0)
    for row in range(rows):
        path = folder / f"class{row % CLASSES}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth = random.integers(0, 255, (8, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        PIL.Image.fromarray(smooth).save(path)


def rate(script: str, argument: str, rows: int) -> float:
    """Return the rows that a script read per second of CPU time."""
    said = run([sys.executable, "-c", script, argument], environment(PYTHONPATH="platform"))
    found, seconds = json.loads(said.splitlines()[-1])
    assert found == rows, f"{found} of {rows} rows were read"
    return rows / float(seconds)


def measure(repeat: int) -> Report:
    """Read both kinds in rounds of Shoal, peer, peer, Shoal."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recordings(folder / "recordings", SENTENCES, ROWS)
        write_recordings(folder / "words", WORDS, ROWS)
        write_pictures(folder / "pictures", ROWS)
        kinds = {
            "recordings": (f"{SPEECH} data.source=audio:{folder}/recordings", SOUNDFILE),
            "words": (f"{SPEECH} data.source=audio:{folder}/words", SOUNDFILE),
            "pictures": (f"{IMAGES} data.source=images:{folder}/pictures", PILLOW),
        }
        lines, figures = [], []
        for kind, (settings, peer) in kinds.items():
            own: list[float] = []
            bare: list[float] = []
            for number in range(repeat):
                progress(f"{kind}: round {number + 1} of {repeat}")
                sides = [(own, SHOAL, settings), (bare, peer, str(folder / kind))]
                for rates, script, argument in sides if number % 2 == 0 else reversed(sides):
                    rates.append(rate(script, argument, ROWS))
            lines += [Row(f"{kind}, Shoal", own, "rows/s"), Row(f"{kind}, bare loop", bare, "rows/s")]
            ratio = Row(f"{kind}, ratio", ratios(own, bare), "x")
            lines.append(ratio)
            if kind != "words":
                figures.append(Figure(f"{kind} beside a bare loop", ratio.median, LEAST, is_at_least=True))
    return Report(f"Reading {ROWS} recordings and pictures", lines, figures)


if __name__ == "__main__":
    main(measure)
