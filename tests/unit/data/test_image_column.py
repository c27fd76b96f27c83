"""Columns of encoded images: data sets of the Hub, parquet files, frames."""

import io
import pickle

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.data.images import holds_images
from shoal.data.loader import Batch
from shoal.data.partition import partition_source
from shoal.data.sampler import TEST, TRAIN, VALIDATION
from shoal.data.sources import image_column as module
from shoal.data.sources.function import source_from_value
from shoal.data.sources.image_column import decode_image_column
from shoal.data.sources.open import open_source
from shoal.data.widen import Widen
from shoal.errors import DataError
from shoal.tasks.open_data import open_data, preprocessing_spec


def noise(height=4, width=5, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels, kind="PNG", **options):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def channels_first(*images):
    stacked = np.stack(images)
    return stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2)


def column(*values):
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def frame(*values, **columns):
    """A source of a column `image` and a label."""
    labels = {"target": np.arange(len(values)) % 2}
    return source_from_value("mine:frame", {"image": column(*values), **labels, **columns})


def decoded(source, shape=None, label="target"):
    """All blocks of a source with its image column decoded, as one."""
    blocks = [block for _, block in decode_image_column(source, label, shape).blocks()]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def refusal(source, shape=None):
    with pytest.raises(DataError) as caught:
        decoded(source, shape)
    return str(caught.value)


@pytest.fixture
def hub(tmp_path):
    """Write a data set with an Image column as `save_to_disk` does; returns its URI."""

    def write(name="set", size=(4, 5), **rows_of_splits):
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        )

        def rows(count, first):
            images = [Image.fromarray(noise(*size, seed=first + number)) for number in range(count)]
            labels = [number % 2 for number in range(count)]
            return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

        parts = {split: rows(count, 1000 * len(split)) for split, count in rows_of_splits.items()}
        made = datasets.DatasetDict(parts) if parts else rows(60, 0)
        made.save_to_disk(str(tmp_path / name))
        return f"huggingface:{tmp_path / name}"

    return write


def config(uri, **data):
    return DataConfig(source=uri, label="label", global_batch_size=8, **data)


def partitioned(data, task="image_classification"):
    """Open, check, fit and partition, as a run does; returns the dataset info and the one worker's rows."""
    source = open_data(data, task, seed=0)
    made = preprocessing_spec(data, task, 0, source)
    info = inspect_source(source, made)
    return info, partition_source(source, made, info, 1)[0]


# Data sets of the Hub.


def test_the_image_column_of_a_hub_data_set_becomes_what_an_image_model_takes(hub):
    info, rows = partitioned(config(hub()))
    assert info.transform.input_shape == (3, 4, 5)
    assert info.transform.label.classes == ("cat", "dog")
    inputs = np.concatenate([inputs for inputs, _ in rows.values()])
    assert inputs.shape == (60, 3, 4, 5)
    assert inputs.dtype == np.uint8  # as they are stored; a batch of them is widened
    batch = Batch(torch.from_numpy(inputs), torch.zeros(60), count=60)
    inputs = Widen(info.transform)(batch, None).inputs.numpy()
    assert inputs.dtype == np.float32
    mean, std = info.transform.columns[0].mean, info.transform.columns[0].std
    pixels = channels_first(*(noise(seed=number) for number in range(60)))
    expected = ((pixels.astype(np.float64) - mean) / std).astype(np.float32)
    np.testing.assert_array_equal(np.sort(inputs.ravel()), np.sort(expected.ravel()))


def test_data_shape_resizes_the_images_of_a_hub_data_set(hub):
    info, rows = partitioned(config(hub(), shape=(1, 6, 6)))
    assert info.transform.input_shape == (1, 6, 6)
    assert rows[TRAIN][0].shape[1:] == (1, 6, 6)


@pytest.mark.parametrize(
    ("train", "name", "test"),
    [("train", "validation", "test"), ("Train", "VAL", "testing"), ("training", "dev", "test")],
)
def test_the_splits_of_a_hub_data_set_are_kept(hub, train, name, test):
    uri = hub(**{train: 30, name: 6, test: 4})
    assert partitioned(config(uri))[0].rows == {TRAIN: 30, VALIDATION: 6, TEST: 4}
    source = open_data(config(uri), "image_classification", seed=0)
    assert [part.split for part in source.parts] == [TRAIN, VALIDATION, TEST]


def test_splits_of_other_names_beside_known_ones_are_left_out(hub):
    rows = partitioned(config(hub(train=100, test=4, unsupervised=50), validation_fraction=0.2))[0].rows
    assert rows[TEST] == 4
    assert rows[TRAIN] + rows[VALIDATION] == 100
    assert 10 <= rows[VALIDATION] <= 30


@pytest.mark.parametrize("splits", [{"dev": 3, "testing": 3}, {"validation": 3, "test": 3}])
def test_several_splits_without_a_training_split_are_refused_by_name(hub, splits):
    uri = hub(**splits)
    with pytest.raises(DataError, match=rf"has the splits {', '.join(splits)}: 'train' must be among them"):
        open_source(uri)


def test_classes_are_the_names_that_a_hub_data_set_states_and_missing_ones_stay_numbers():
    kinds = datasets.Features(
        {"x": datasets.Value("int64"), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )

    def made(*labels):
        return datasets.Dataset.from_dict({"x": range(len(labels)), "label": labels}, features=kinds)

    splits = datasets.DatasetDict({"train": made(0, 1, None), "test": made(-1, -1), "unsupervised": made(0)})
    source = source_from_value("m:f", splits)
    found = {split: block["label"].tolist() for split, block in source.blocks()}
    assert found == {"train": ["cat", "dog", None], "test": [-1, -1]}
    assert source.notes == ("splits left out: unsupervised",)
    with pytest.raises(DataError, match="without streaming=True"):
        source_from_value("m:f", splits["train"].to_iterable_dataset())


def test_images_of_sixteen_bits_in_a_column_are_scaled_by_the_range_that_they_use():
    deep = np.array([[0, 4095], [2048, 16]], dtype=np.uint16)
    source = frame(encode(deep), encode(deep // 2))
    block = decoded(source)[0] if isinstance(decoded(source), list) else decoded(source)
    assert block["image"][0, 0].tolist() == [[0, 255], [128, 1]]
    assert decode_image_column(source, "target", None).notes


def test_a_single_split_of_any_name_is_all_of_the_data(hub):
    source = open_source(hub(everything=7))
    assert [part.split for part in source.parts] == [None]


def test_encoded_images_under_another_task_are_refused_with_the_task_that_decodes_them(hub):
    with pytest.raises(DataError, match=r"column 'image' of .* holds encoded images") as caught:
        partitioned(config(hub()), task="classification")
    assert "task=image_classification" in str(caught.value)


# Columns.


def test_a_column_holds_images_if_its_first_value_does():
    image = encode(noise())
    assert holds_images(column(None, image))
    assert holds_images(column({"bytes": image, "path": None}))
    for other in (column(b"\x00\x01"), column("text"), column({"x": 1}), column(None), np.arange(3)):
        assert not holds_images(other)


def test_bytes_and_structs_of_bytes_and_path_are_decoded(tmp_path):
    one, two = noise(), noise(seed=1)
    expected = channels_first(one, two)
    np.testing.assert_array_equal(decoded(frame(encode(one), encode(two)))["image"], expected)
    (tmp_path / "2.png").write_bytes(encode(two))
    pairs = {"bytes": encode(one), "path": "1.png"}, {"bytes": None, "path": str(tmp_path / "2.png")}
    block = decoded(frame(*pairs, other=np.arange(2)))
    np.testing.assert_array_equal(block["image"], expected)
    assert list(block) == ["image", "target"]


@pytest.mark.parametrize("kind", ["plain", "struct"])
def test_images_in_a_parquet_file_are_decoded(tmp_path, kind):
    images = [noise(channels=1, seed=number) for number in range(2)]
    values = [
        encode(image) if kind == "plain" else {"bytes": encode(image), "path": None} for image in images
    ]
    pq.write_table(pa.table({"image": values, "target": ["a", "b"]}), tmp_path / "x.parquet")
    block = decoded(open_source(f"parquet:{tmp_path}/x.parquet"))
    np.testing.assert_array_equal(block["image"], channels_first(*images))
    assert block["target"].tolist() == ["a", "b"]


def test_one_colour_image_among_greyscale_ones_makes_all_of_them_rgb():
    block = decoded(frame(encode(noise(channels=1)), encode(noise())))
    assert block["image"].shape == (2, 3, 4, 5)


def test_the_size_is_that_of_a_photograph_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(noise(4, 6, channels=1), exif=exif)
    assert decoded(frame(turned, turned))["image"].shape == (2, 1, 6, 4)


def test_images_of_several_sizes_are_refused_without_data_shape_and_resized_with_it():
    both = frame(encode(noise(4, 5)), encode(noise(7, 6)))
    message = refusal(both)
    assert "2 sizes, from (4, 5) to (7, 6)" in message
    assert "set data.shape=[channels, height, width]" in message
    assert decoded(both, (3, 8, 8))["image"].shape == (2, 3, 8, 8)


def test_another_size_in_a_later_block_is_refused_too(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    assert "2 sizes, from (4, 5) to (7, 6)" in refusal(frame(encode(noise(4, 5)), encode(noise(7, 6))))


def test_missing_and_broken_images_are_named_by_their_row(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 3 * noise().nbytes)
    good = encode(noise())
    source = frame(*[good] * 3, good, None, {"bytes": b"no image", "path": None})
    message = refusal(source)
    assert "cannot be read: 2: row 4 (it is missing), row 5 (no format that is known): fix or" in message


def test_several_columns_of_images_are_refused_by_name():
    masks = column(encode(noise()), encode(noise()))
    message = refusal(frame(encode(noise()), encode(noise()), mask=masks))
    assert "several columns of images (image, mask)" in message


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8)])
def test_a_shape_that_images_cannot_have_is_refused(shape):
    assert f"data.shape={list(shape)} is no shape of images" in refusal(frame(encode(noise())), shape)


def test_a_label_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"data.label='tarjet' .*did you mean 'target'"):
        decode_image_column(frame(encode(noise())), "tarjet", None)


def test_a_source_without_encoded_images_is_returned_as_it_is():
    source = source_from_value("mine:frame", pd.DataFrame({"x": [1.0, 2.0], "target": [0, 1]}))
    assert decode_image_column(source, "target", (1, 1, 1)) is source


def test_the_fingerprint_changes_with_a_pixel_and_the_shape_alone():
    def of(image, shape=None):
        return decode_image_column(frame(encode(image), encode(image)), "target", shape).fingerprint

    first, other = noise(), noise()
    other[0, 0, 0] ^= 1
    assert of(first) == of(noise())
    assert len({of(first), of(other), of(first, (3, 4, 5)), of(first, (1, 4, 5))}) == 4


def test_the_size_is_exact_for_a_small_source_and_estimated_for_a_large_one(monkeypatch):
    images = [encode(noise(seed=number)) for number in range(6)]
    small = decode_image_column(frame(*images), "target", None)
    assert small.nbytes == 6 * noise().nbytes
    monkeypatch.setattr("shoal.data.sources.base.IN_DRIVER_BYTES", 0)
    monkeypatch.setattr("shoal.data.sources.function.IN_DRIVER_BYTES", 1 << 30)
    large = decode_image_column(frame(*images), "target", None)
    assert not large.is_small
    assert large.nbytes > 0


def test_a_part_can_be_decoded_by_another_process_as_by_this_one(hub):
    """What the tasks of a cluster do where the data set is too large for the driver."""
    source = open_data(config(hub()), "image_classification", seed=0)
    encoded, decode = source.parts[0].encoded
    found = list(pickle.loads(pickle.dumps(decode))(next(encoded.read())))
    [(_, expected)] = source.blocks()
    assert [list(block) for block in found] == [list(expected)]
    for name, values in expected.items():
        assert found[0][name].dtype == values.dtype
        np.testing.assert_array_equal(found[0][name], values)
