"""What a trained model hears in a few held-out recordings: a table beside what was said, and a picture of three."""

import json
from typing import Any

from shoal.data.audio import FRAMES_PER_OUTPUT, HOP_S
from shoal.data.sources.base import Block
from shoal.inference.predictor import Predictor
from shoal.plots.spectrograms import Heard, spectrograms
from shoal.storage.run_folder import PICTURES, REPORTS, RunFolder
from shoal.tasks.speech_recognition import SpeechRecognition

TABLE = f"{REPORTS}/transcripts.json"
PICTURE = f"{PICTURES}/spectrograms.png"
SHOWN, DRAWN = 10, 3  # recordings in the table, and in the picture
# By this tag MLflow shows the file as a table.
TABLE_TAG = {"mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])}


def write_transcripts(folder: RunFolder, predictor: Predictor, rows: Block, title: str) -> None:
    """Write the table and the picture.

    Args:
        rows: held-out recordings with their units.
    """
    task, transform = predictor.task, predictor.transform
    assert isinstance(task, SpeechRecognition)
    assert transform.audio is not None
    audio, label = transform.columns[0].name, transform.label.name
    some = {name: rows[name][:SHOWN] for name in (audio, label)}
    said = [task.text(list(ids)) for ids in some[label]]
    heard = [str(text) for text in predictor.arrays(some)["prediction"]]
    cells: list[list[Any]] = [list(pair) for pair in zip(said, heard, strict=True)]
    folder.write(TABLE, json.dumps({"columns": ["reference", "transcript"], "data": cells}).encode())
    panels = []
    for number in range(min(DRAWN, len(said))):
        [(view, outputs)] = predictor.heard({audio: some[audio][number : number + 1]})
        marks = task.emitted(outputs, view)[0]
        panels.append(
            Heard(
                transform.audio.features(some[audio][number]),
                [(place * FRAMES_PER_OUTPUT, unit) for place, unit in marks],
                heard[number],
                said[number],
            )
        )
    folder.write(PICTURE, spectrograms(panels, HOP_S, title))
