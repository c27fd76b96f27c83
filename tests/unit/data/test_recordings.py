"""Recordings: the forms in which corpora list them, what is broken in them, how they are strung together."""

import gzip
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from shoal.data import how_far
from shoal.data.audio import BANDS, FULL_SCALE, AudioFormat, as_16_bits, filter_bank, log_mel, resampled
from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.data.partition import partition_source
from shoal.data.sampler import SPLITS, TEST, TRAIN, VALIDATION
from shoal.data.sources.encoded_audio import Encoded
from shoal.data.units import make_units, units_from_json
from shoal.errors import ConfigError, DataError
from shoal.tasks.open_data import open_data, preprocessing_spec, reopen_source

TASK = "speech_recognition"
RATE = 8000
DIGITS = Path(__file__).resolve().parents[4] / "shared/data/digits-speech"
TEXTS = ("yes no", "no", "yes yes no", "no yes", "yes", "no no yes")


def tone(seconds=0.8, hz=440.0, rate=RATE, seed=0):
    times = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(0, 0.01, len(times))
    return (0.3 * np.sin(2 * np.pi * hz * times) + noise).astype(np.float32)


def opened(source, **data):
    data = {"tokenizer": "char", "validation_fraction": 0.0, "global_batch_size": 1} | data
    config = DataConfig(source=source, **data)
    source = open_data(config, TASK, 0)
    return source, preprocessing_spec(config, TASK, 0, source)


def rows(source, label="target"):
    """The texts of each split, and how many samples each recording has."""
    found = {}
    for split, block in source.blocks():
        texts = [source.audio.tokenizer.decode(ids) for ids in block[label]]
        found[split] = list(zip(texts, map(len, block["audio"]), strict=True))
    return found


@pytest.fixture
def corpus(tmp_path):
    """Six recordings, four to train on; returns their folder, names and splits."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    names = [f"a-{number}" for number in range(len(TEXTS))]
    for number, name in enumerate(names):
        soundfile.write(folder / f"{name}.flac", tone(seed=number), RATE)
    return folder, names, [TRAIN] * 4 + [TEST] * 2


def as_table(folder, names, splits):
    cells = zip(names, TEXTS, splits, strict=True)
    lines = ["path\tsentence\tsplit", *(f"{name}.flac\t{text}\t{split}" for name, text, split in cells)]
    (folder / "all.tsv").write_text("\n".join(lines))
    return f"audio:{folder}"


def as_common_voice(folder, names, splits):
    (folder / "clips").mkdir()
    for name in names:
        (folder / f"{name}.flac").rename(folder / "clips" / f"{name}.flac")
    for split in (TRAIN, TEST):
        cells = [(n, t) for n, t, s in zip(names, TEXTS, splits, strict=True) if s == split]
        lines = ["client_id\tpath\tsentence", *(f"x\t{name}.flac\t{text}" for name, text in cells)]
        (folder / f"{split}.tsv").write_text("\n".join(lines))
    (folder / "invalidated.tsv").write_text("client_id\tpath\tsentence\nx\tnowhere.flac\tmaybe")
    return f"audio:{folder}"


def as_nemo(folder, names, splits):
    for split in (TRAIN, TEST):
        lines = [
            json.dumps({"audio_filepath": f"{n}.flac", "duration": 0.8, "text": t})
            for n, t, s in zip(names, TEXTS, splits, strict=True)
            if s == split
        ]
        (folder / f"{split}_manifest.json").write_text("\n".join(lines))
    return f"audio:{folder}"


def as_lhotse(folder, names, splits):
    for split in (TRAIN, TEST):
        lines = [
            json.dumps(
                {
                    "id": name,
                    "start": 0.0,
                    "duration": 0.8,
                    "channel": 0,
                    "supervisions": [{"text": text, "speaker": "x"}],
                    "recording": {
                        "sources": [{"type": "file", "source": f"{name}.flac"}],
                        "sampling_rate": RATE,
                    },
                }
            )
            for name, text, s in zip(names, TEXTS, splits, strict=True)
            if s == split
        ]
        (folder / f"cuts_{split}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return f"audio:{folder}"


def as_kaldi(folder, names, splits):
    for split in (TRAIN, TEST):
        (folder / split).mkdir()
        cells = [(n, t) for n, t, s in zip(names, TEXTS, splits, strict=True) if s == split]
        (folder / split / "wav.scp").write_text("\n".join(f"{n} {folder}/{n}.flac" for n, _ in cells))
        (folder / split / "text").write_text("\n".join(f"{n} {t}" for n, t in cells))
    return f"audio:{folder}"


def as_librispeech(folder, names, splits):
    root = folder / "LibriSpeech"
    for name, text, split in zip(names, TEXTS, splits, strict=True):
        chapter = root / f"{split}-clean" / "a" / "1"
        chapter.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.flac").rename(chapter / f"{name}.flac")
        with (chapter / "a-1.trans.txt").open("a") as file:
            file.write(f"{name} {text}\n")
    return f"audio:{root}"


def as_hugging_face(folder, names, splits):
    def part(split):
        cells = [(n, t) for n, t, s in zip(names, TEXTS, splits, strict=True) if s == split]
        audio = [{"bytes": (folder / f"{n}.flac").read_bytes(), "path": None} for n, _ in cells]
        made = datasets.Dataset.from_dict({"audio": audio, "sentence": [t for _, t in cells]})
        return made.cast_column("audio", datasets.Audio(decode=False))

    datasets.DatasetDict({split: part(split) for split in (TRAIN, TEST)}).save_to_disk(folder / "saved")
    return f"huggingface:{folder}/saved"


def as_ljspeech(folder, names, splits):
    for split in (TRAIN, TEST):
        part = folder / split
        (part / "wavs").mkdir(parents=True)
        for name, text, s in zip(names, TEXTS, splits, strict=True):
            if s == split:
                (folder / f"{name}.flac").rename(part / "wavs" / f"{name}.flac")
                with (part / "metadata.csv").open("a") as file:
                    file.write(f'{name}|"{text.upper()}, once|{text}\n')
    return f"audio:{folder}"


def as_texts_beside(folder, names, splits):
    for name, text, split in zip(names, TEXTS, splits, strict=True):
        (folder / split).mkdir(exist_ok=True)
        (folder / f"{name}.flac").rename(folder / split / f"{name}.flac")
        (folder / split / f"{name}.txt").write_text(f"{text}\n")
    return f"audio:{folder}"


def as_list_of_another_machine(folder, names, splits):
    """Whose recordings have been converted since, and two of whose folders hold the same file names."""
    lines = ["wav_filename,wav_filesize,transcript,split"]
    for name, text, split in zip(names, TEXTS, splits, strict=True):
        (folder / "x" / split).mkdir(exist_ok=True, parents=True)
        (folder / f"{name}.flac").rename(folder / "x" / split / f"{int(name[-1]) % 4}.flac")
        lines.append(f"/data/{split}/{int(name[-1]) % 4}.mp3,100,{text},{split}")
    (folder / "all.csv").write_text("\n".join(lines))
    return f"audio:{folder}"


FORMS = (
    as_table,
    as_common_voice,
    as_nemo,
    as_lhotse,
    as_kaldi,
    as_librispeech,
    as_hugging_face,
    as_ljspeech,
)
FORMS += (as_texts_beside, as_list_of_another_machine)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_the_same_recordings_and_fingerprint(form, corpus):
    source, preprocessing = opened(form(*corpus))
    expected = [(text, round(0.8 * RATE)) for text in TEXTS]
    assert rows(source) == {TRAIN: expected[:4], TEST: expected[4:]}
    assert source.audio.rate == RATE
    assert source.fingerprint == "8bfedafecf138358"
    info = inspect_source(source, preprocessing)
    assert info.rows == {TRAIN: 4, VALIDATION: 0, TEST: 2}
    assert info.transform.input_shapes == (81, BANDS)
    assert info.transform.outputs == source.audio.tokenizer.vocabulary == 3 + len(set(" ".join(TEXTS)))


def test_other_rates_and_channels_become_one_and_formats_are_heard_alike(tmp_path):
    wave = tone(1.0, rate=48_000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, wave], axis=1), 48_000)
    soundfile.write(tmp_path / "low.ogg", tone(1.0), RATE)
    soundfile.write(tmp_path / "middle.mp3", tone(1.0, rate=16_000), 16_000)
    (tmp_path / "list.csv").write_text("path,text\nstereo.wav,a b\nlow.ogg,b a\nmiddle.mp3,a\n")
    source, preprocessing = opened(f"audio:{tmp_path}/list.csv", test_fraction=0.0)
    assert source.audio.rate == RATE
    [(_, block)] = source.blocks()
    for heard in block["audio"]:
        assert abs(len(heard) - RATE) < 1000  # mp3 adds silence
        spectrum = np.abs(np.fft.rfft(heard))
        assert np.fft.rfftfreq(len(heard), 1 / RATE)[spectrum.argmax()] == pytest.approx(440, abs=2)
    assert opened(f"audio:{tmp_path}/list.csv", sample_rate=16_000)[0].audio.rate == 16_000


def broken(tmp_path):
    """A table with one sound recording, and one broken in each way; returns the reason by name."""
    soundfile.write(tmp_path / "good.wav", tone(), RATE)
    soundfile.write(tmp_path / "none.wav", tone(0), RATE)
    soundfile.write(tmp_path / "short.wav", tone(0.1), RATE)
    soundfile.write(tmp_path / "whole.flac", tone(2.0), RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:9000])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "other.wav").write_bytes(b"no sound at all")
    table = [
        ("good.wav", "yes no", TRAIN), ("none.wav", "no", TRAIN), ("short.wav", "yes no yes no", TRAIN),
        ("cut.flac", "no", TRAIN), ("empty.wav", "no", TRAIN), ("other.wav", "no", TRAIN),
        ("missing.wav", "no", TRAIN), ("good.wav", "", TRAIN), ("good.wav", "yes", TEST),
        ("good.wav", "no qed", TEST),
    ]  # fmt: skip
    pd.DataFrame(table, columns=["path", "text", "split"]).to_csv(
        tmp_path / "list.tsv", sep="\t", index=False
    )
    return {
        "none.wav": "it holds no samples",
        "short.wav": "too short for its text of 13 units: it has 3 outputs, and 13 are needed",
        "cut.flac": "",
        "empty.wav": "it is empty",
        "other.wav": "",
        "missing.wav": "there is no such file",
        "good.wav": "it has no text",
    }


def test_what_is_broken_stops_the_run_by_name_or_is_left_out_and_counted(tmp_path):
    reasons = broken(tmp_path)
    with pytest.raises(DataError) as caught:
        opened(f"audio:{tmp_path}/list.tsv")
    message = str(caught.value)
    assert "\n" not in message
    assert "recordings cannot be used" in message
    assert message.endswith("fix or remove them, or set data.on_bad=skip")
    for name, reason in reasons.items():
        assert f"'{name}' ({reason}" in message, message
    source, _ = opened(f"audio:{tmp_path}/list.tsv", on_bad="skip")
    assert rows(source) == {TRAIN: [("yes no", 6400)], TEST: [("yes", 6400)]}
    [note] = source.notes
    assert note.endswith(": left out")


@pytest.mark.parametrize("listed", ["some/1.wav", "1", "/data/1.wav", "test/2.wav", "/data/test/2.wav"])
def test_a_recording_is_not_guessed_from_several_or_from_another_folder(tmp_path, listed):
    for file in ("a/1", "b/1", "train/2"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"{file}.wav", tone(), RATE)
    (tmp_path / "all.tsv").write_text(f"path\tsentence\n{listed}\tyes\n")
    with pytest.raises(DataError, match=rf"'{listed}' \(there is no such file\)"):
        opened(f"audio:{tmp_path}")


@pytest.mark.parametrize(
    "listed",
    [
        "train/2.wav",
        "2.mp3",
        "2",
        "x/train/2",
        "/data/train/2.flac",
        r"C:\data\train\2.wav",
        "/data/3.ogg",
    ],
)
def test_a_recording_is_found_below_the_folder_of_its_list(tmp_path, listed):
    for file in ("x/train/2", "3"):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        soundfile.write(tmp_path / f"{file}.wav", tone(), RATE)
    (tmp_path / "all.tsv").write_text(f"path\tsentence\n{listed}\tyes\n")
    source, _ = opened(f"audio:{tmp_path}", test_fraction=0.0)
    assert rows(source) == {TRAIN: [("yes", 6400)]}


def test_a_recording_much_longer_than_the_others_stops_the_run_or_is_left_out(tmp_path):
    lines = ["path\tsentence\tsplit"]
    for number in range(60):
        soundfile.write(tmp_path / f"{number}.wav", tone(seconds=1 + number / 60, seed=number), RATE)
        lines.append(f"{number}.wav\tyes no\ttrain")
    soundfile.write(
        tmp_path / "long.flac", np.zeros(1_200 * RATE, dtype=np.int16), RATE
    )  # 61 of these: 1.2 GB
    (tmp_path / "all.tsv").write_text("\n".join([*lines, "long.flac\tno\ttrain"]))
    with pytest.raises(
        DataError, match=r"long\.flac' \(1200 s long, and those that are kept have 1\.5 s on.*on_bad=skip"
    ):
        opened(f"audio:{tmp_path}")
    source, spec = opened(f"audio:{tmp_path}", on_bad="skip")
    inspect_source(source, spec)  # which refuses too much padding
    assert len(rows(source)[TRAIN]) == 60
    assert "1 recording cannot be used: " in source.notes[0]


def test_decoding_that_takes_long_says_how_far_it_has_come(corpus, monkeypatch, caplog):
    monkeypatch.setattr(how_far, "SAY_EVERY_S", 0.0)
    with caplog.at_level("INFO"):
        opened(as_table(*corpus))
    assert "5 of 6 recordings are decoded" in caplog.text


def test_a_list_without_texts_or_recordings_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    with pytest.raises(DataError, match="has 1 recordings and no list of their texts"):
        opened(f"audio:{tmp_path}")
    (tmp_path / "list.csv").write_text("path,words\na.wav,yes\n")
    with pytest.raises(DataError, match=r"has no column of texts \(target, sentence, text"):
        opened(f"audio:{tmp_path}/list.csv")
    source, _ = opened(f"audio:{tmp_path}/list.csv", label="words", test_fraction=0.0)
    assert rows(source, "words") == {TRAIN: [("yes", 6400)]}
    (tmp_path / "wav.scp").write_text("a cat a.wav |")
    with pytest.raises(DataError, match="is a command, and none is run"):
        opened(f"audio:{tmp_path}")


def test_units_of_the_training_texts_alone_and_what_they_do_not_spell():
    for name, text in (("char", "no"), ("word", "yes no"), ("byte", "é"), ("bpe:300", "yes")):
        units = make_units(name, ["yes no"])
        saved = units_from_json(units.to_json())
        assert saved.decode(saved.encode(text)) == text
    with pytest.raises(DataError, match="has the word 'maybe', which no training text has"):
        make_units("word", ["yes no"]).encode("yes maybe")
    with pytest.raises(ConfigError, match="or char or word, with task=speech_recognition"):
        make_units("letters", [])


def test_the_filters_cover_the_bands_and_a_tone_is_in_its_own():
    bank = filter_bank(RATE)
    assert bank.shape == (BANDS, 129)
    assert (bank.sum(0)[2:-1] > 0.1).all()
    loudest = log_mel(torch.from_numpy(tone(hz=1000.0)), RATE).mean(0).argmax()
    assert bank[loudest, round(1000 / RATE * 256)] > 0.5


def test_resampling_keeps_a_tone_and_drops_what_the_rate_cannot_hold():
    kept = resampled(as_16_bits(tone(1.0, rate=48_000)), 48_000, RATE)
    assert len(kept) == RATE
    assert kept.dtype == np.int16
    noise = (kept - as_16_bits(tone(1.0)).astype(float))[200:-200] / FULL_SCALE
    assert np.abs(noise).max() < 0.08  # that of each tone is its own
    dropped = resampled(as_16_bits(tone(1.0, hz=6000.0, rate=48_000)), 48_000, RATE)
    assert (dropped / FULL_SCALE).std() < 0.02


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_a_wave_has_the_same_samples_however_it_is_encoded(tmp_path, subtype):
    extremes = np.array([-FULL_SCALE, -1, 0, 1, FULL_SCALE - 1], dtype=np.int16)
    path = tmp_path / "one.wav"
    soundfile.write(path, extremes / FULL_SCALE, RATE, subtype)
    samples, rate = Encoded("one", str(path)).decoded()
    assert samples.dtype == np.int16
    assert rate == RATE
    assert samples.tolist() == extremes.tolist()


def test_loudness_does_not_matter_and_a_wave_alone_has_as_many_frames_as_is_said():
    audio = AudioFormat(rate=RATE, units=make_units("char", ["a"]).to_json())
    wave = (tone(0.5) * 20_000).astype(np.int16)
    found = audio.features(wave)
    assert found.shape == (audio.frames(len(wave)), BANDS)
    assert found.dtype == np.float16
    assert np.abs(found - audio.features(wave // 4)).max() < 0.3
    assert audio.features(np.zeros(1, dtype=np.int16)).shape == (1, BANDS)


def test_synthetic_digits_are_a_function_of_their_number_and_seed():
    uri = "synthetic:speech?rows=30&voices=2&seed=3"
    one, preprocessing = opened(uri, tokenizer="word", validation_fraction=0.1)
    assert rows(one) == rows(opened(uri, tokenizer="word", validation_fraction=0.1)[0])
    assert one.fingerprint != opened(uri.replace("seed=3", "seed=4"), tokenizer="word")[0].fingerprint
    texts = [text.split() for some in rows(one).values() for text, _ in some]
    assert {len(text) for text in texts} <= set(range(3, 8))
    info = inspect_source(one, preprocessing)
    [part] = partition_source(one, preprocessing, info, 1)
    assert {name: len(inputs) for name, (inputs, _) in part.items()} == info.rows
    with pytest.raises(DataError, match="rows=no is not understood: set rows, voices, seed"):
        opened("synthetic:speech?rows=no")


def test_strings_are_of_one_split_and_speaker_and_the_same_when_they_are_made_again(tmp_path):
    lines = ["path,text,speaker,split"]
    for number in range(12):
        soundfile.write(tmp_path / f"{number}.wav", tone(0.5, seed=number), RATE)
        lines.append(f"{number}.wav,w{number},{number % 2},{TEST if number > 7 else TRAIN}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    data = {"tokenizer": "byte", "compose": "2-3", "validation_fraction": 0.3}
    source, preprocessing = opened(f"audio:{tmp_path}/list.csv", **data)
    found = rows(source)
    words = {split: {word for text, _ in some for word in text.split()} for split, some in found.items()}
    assert not words[TRAIN] & words[VALIDATION]
    assert words[TEST] <= {f"w{number}" for number in range(8, 12)}
    assert len(found[TRAIN]) + 10 * len(found[VALIDATION]) == 80
    for split, text, samples in ((split, *row) for split, some in found.items() for row in some):
        numbers = [int(word[1:]) for word in text.split()]
        assert len({number % 2 for number in numbers}) == 1
        assert 2 <= len(numbers) <= 3
        slow, fast = (4000 / 0.9, 4000 / 1.1) if split == TRAIN else (4000, 4000)
        assert fast * len(numbers) <= samples <= slow * len(numbers) + 800 * (len(numbers) + 1)
    again = reopen_source(preprocessing, TASK)
    assert again.fingerprint == source.fingerprint


@pytest.mark.skipif(not DIGITS.is_dir(), reason="the recordings of digits are not here")
def test_real_digits_are_read_with_their_splits_and_speakers():
    source, preprocessing = opened(f"audio:{DIGITS}", tokenizer="word", validation_fraction=0.1)
    found = rows(source)
    assert {split: len(some) for split, some in found.items()}[TEST] == 300
    assert {text for some in found.values() for text, _ in some} == set(source.audio.tokenizer.units)
    assert inspect_source(source, preprocessing).rows[TRAIN] > 250
    assert set(found) == set(SPLITS)


def test_bytes_that_are_no_recording_name_their_row(tmp_path):
    stream = io.BytesIO()
    soundfile.write(stream, tone(), RATE, format="WAV")
    frame = pd.DataFrame({"audio": [stream.getvalue(), b"noise"], "text": ["yes", "no"]})
    frame.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"1 recording cannot be used: 'row 1' \("):
        opened(f"parquet:{tmp_path}/rows.parquet")
