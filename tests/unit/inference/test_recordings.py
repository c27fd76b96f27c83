"""What callers hand in as recordings: files as base64, bytes or mappings of them, samples, in tables and lists."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
import soundfile

from shoal.data.audio import AudioFormat
from shoal.errors import DataError
from shoal.inference.rows import _recordings

AUDIO = AudioFormat(rate=8000, units='{"kind": "word", "units": ["one"]}')
SAMPLES = (np.sin(np.arange(400) / 9) * 20_000).astype(np.int16)


def encoded() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, SAMPLES, 8000, format="WAV")
    return file.getvalue()


TEXT = base64.b64encode(encoded()).decode()


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ({"audio": [TEXT]}, 1),
        ({"audio": [encoded(), {"bytes": encoded()}]}, 2),
        (pd.DataFrame({"audio": [TEXT, TEXT]}), 2),
        (pd.DataFrame({"audio": [[TEXT, TEXT, TEXT]]}), 3),  # MLflow's frame of {"audio": [...]}
        ([SAMPLES, SAMPLES.tolist(), SAMPLES / 32768], 3),
    ],
    ids=["text", "bytes", "frame", "row of a list", "samples"],
)
def test_recordings_are_heard_however_they_are_handed_in(data, rows):
    waves = _recordings(data, "audio", AUDIO)["audio"]
    assert len(waves) == rows
    for wave in waves:
        np.testing.assert_allclose(wave, SAMPLES, atol=1)


@pytest.mark.parametrize("cell", [[], [TEXT, 3], "no base64!", {"path": "a.wav"}])
def test_what_is_no_recording_is_refused_by_its_number(cell):
    with pytest.raises(DataError, match="recording 1"):
        _recordings({"audio": [TEXT, cell]}, "audio", AUDIO)
