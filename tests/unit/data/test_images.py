import io
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.data.images import item_pixels, read_pixels, refuse_broken, stack_pixels
from shoal.data.sampler import TEST, TRAIN, VALIDATION
from shoal.data.sources import images as module
from shoal.data.sources.images import ImageFile, encoded_files, image_shape, list_images, open_images
from shoal.data.sources.open import open_source
from shoal.errors import DataError
from shoal.tasks.open_data import open_data, preprocessing_spec, reopen_source

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Write an image below the working directory: an array, or a colour that fills 8x6 pixels."""
    monkeypatch.chdir(tmp_path)

    def write(name, pixels=RED, size=(8, 6), **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else Image.new("RGB", size, pixels)
        image.save(path, **options)
        return path

    return write


def encode(pixels, kind="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def files(*paths):
    return [ImageFile(str(path), "a") for path in paths]


def read_images(files, size, channels):
    """The pixels of files [n, channels, height, width]; without a size all must have that of the first."""
    pixels, broken = read_pixels(encoded_files(files), size, channels)
    refuse_broken(broken)
    return stack_pixels(pixels, size or pixels[0].shape[1:])


def refusal(call, *args, **kwargs):
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# Folders.


def test_the_class_is_the_folder_at_the_top_and_files_are_sorted_without_hidden_and_other_ones(
    draw, tmp_path
):
    for name in (
        "d/dog/b.png",
        "d/dog/a.JPG",
        "d/cat/deep/er/x.webp",
        "d/.hidden/a.png",
        "d/dog/._a.png",
        "d/a.png",
    ):
        draw(name)
    (tmp_path / "d/dog/notes.txt").write_text("no image")
    (tmp_path / "d/empty").mkdir()
    found = [(file.path, file.label, file.split) for file in list_images("d")]
    root = str(tmp_path / "d")
    assert found == [
        (f"{root}/cat/deep/er/x.webp", "cat", None),
        (f"{root}/dog/a.JPG", "dog", None),
        (f"{root}/dog/b.png", "dog", None),
    ]


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "webp", "gif", "tif", "tiff"])
def test_every_format_is_found_and_read(draw, suffix):
    paths = [draw(f"d/{label}/x.{suffix}", colour) for label, colour in [("blue", BLUE), ("red", RED)]]
    listed = list_images("d")
    assert [file.path for file in listed] == list(map(str, paths))
    means = read_images(listed, None, 3).mean(axis=(2, 3))
    np.testing.assert_allclose(means, [BLUE, RED], atol=3)


def test_names_with_spaces_percent_signs_and_links_are_followed(draw, tmp_path):
    draw("my set/a b/100%20.png", BLUE)
    draw("elsewhere/x.png", GREEN)
    (tmp_path / "my set/linked").symlink_to(tmp_path / "elsewhere")
    listed = list_images("my set")
    assert [file.label for file in listed] == ["a b", "linked"]
    assert read_images(listed, None, 3)[:, :, 0, 0].tolist() == [list(BLUE), list(GREEN)]


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_folders_called_train_validation_and_test_that_hold_class_folders_are_the_splits(draw, name):
    for split in ("train", name, "test"):
        draw(f"d/{split}/cat/1.png")
        draw(f"d/{split}/dog/2.png")
    draw("d/test/no_class.png")
    assert [(file.split, file.label) for file in list_images("d")] == [
        (TEST, "cat"), (TEST, "dog"), (TRAIN, "cat"), (TRAIN, "dog"), (VALIDATION, "cat"), (VALIDATION, "dog")
    ]  # fmt: skip
    source = open_source("images:d")
    assert [part.split for part in source.parts] == [TRAIN, VALIDATION, TEST]
    assert [(split, block["target"].tolist()) for split, block in source.blocks()] == [
        (split, ["cat", "dog"]) for split in (TRAIN, VALIDATION, TEST)
    ]


def test_a_class_may_be_called_train(draw):
    for name in ("train/1.png", "test/1.png", "bus/1.png"):
        draw(f"flat/{name}")
    assert [(file.label, file.split) for file in list_images("flat")] == [
        ("bus", None), ("test", None), ("train", None)
    ]  # fmt: skip
    for name in ("train/2020/1.png", "bus/2020/1.png"):
        draw(f"deep/{name}")
    assert [(file.label, file.split) for file in list_images("deep")] == [("bus", None), ("train", None)]


def test_folders_that_cannot_be_trained_on_are_refused_with_what_to_do(draw, tmp_path):
    assert "images:nowhere is no folder, seen from" in refusal(list_images, "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no image: put files (.png" in refusal(list_images, "empty")
    draw("flat/1.png")
    draw("flat/2.png")
    assert "holds 2 images and no class folders" in refusal(list_images, "flat")
    assert "is no folder" in refusal(list_images, "flat/1.png")
    draw("one/cat/1.png")
    (tmp_path / "one/dog").mkdir()
    assert "images of one class ('cat'): classification needs at least two" in refusal(list_images, "one")
    for name in ("val/a/1.png", "val/b/1.png", "test/a/1.png"):
        draw(f"untrained/{name}")
    assert "class folders in other splits, but none in train" in refusal(list_images, "untrained")
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "extra/a/1.png"):
        draw(f"odd/{name}")
    assert "has 'extra' beside the splits train, val: move it" in refusal(list_images, "odd")


def test_an_object_store_is_read_as_a_folder_is(s3):
    from shoal.storage.folder import Folder

    pixels = {"images/cat/1.png": noise(4, 5), "images/dog/2.png": noise(4, 5, seed=1)}
    for name, image in pixels.items():
        Folder(s3).write(name, encode(image))
    source = open_source(f"images:{s3}/images")
    [(split, block)] = source.blocks()
    assert (split, block["target"].tolist()) == (None, ["cat", "dog"])
    np.testing.assert_array_equal(block["image"], np.stack(list(pixels.values())).transpose(0, 3, 1, 2))


# Pixels.


def test_pixels_of_lossless_files_come_out_as_they_were_written_channels_first(draw):
    image = noise(6, 8)
    found = read_images(files(draw("x.png", image)), None, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, image.transpose(2, 0, 1)[None])
    np.testing.assert_array_equal(read_images(files(draw("x.png", image)), (6, 8), 3), found)


def test_an_image_just_covers_the_size_and_is_cropped_to_its_centre(draw):
    """A wide image of three squares, red, green and blue: the middle one is left."""
    image = np.zeros((40, 120, 3), dtype=np.uint8)
    for number, colour in enumerate((RED, GREEN, BLUE)):
        image[:, 40 * number : 40 * number + 40] = colour
    for name, pixels in [("wide.png", image), ("tall.png", image.transpose(1, 0, 2).copy())]:
        found = read_images(files(draw(name, pixels)), (20, 20), 3)[0]
        assert found.shape == (3, 20, 20)
        np.testing.assert_array_equal(
            found[:, 1:-1, 1:-1], np.broadcast_to(np.array(GREEN)[:, None, None], (3, 18, 18))
        )


def test_shrinking_averages_over_all_pixels_so_that_a_fine_pattern_turns_grey(draw):
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = read_images(files(draw("board.png", board)), (8, 8), 1)
    assert np.abs(found.astype(int) - 128).max() <= 4


def test_enlarging_is_bilinear(draw):
    ramp = np.array([[0, 100]], dtype=np.uint8)
    found = read_images(files(draw("ramp.png", np.repeat(ramp, 2, axis=0))), (4, 4), 1)
    assert found[0, 0, 0].tolist() == [0, 25, 75, 100]  # at -1/4, 1/4, 3/4, 5/4 of the way, the ends held


def test_greyscale_and_colour_are_turned_into_each_other(draw):
    grey = noise(3, 3, channels=1)
    np.testing.assert_array_equal(
        read_images(files(draw("grey.png", grey)), None, 3)[0], np.stack([grey] * 3)
    )
    found = read_images(files(draw("colour.png", GREEN)), None, 1)
    assert np.unique(found).tolist() == [150]  # ITU-R 601: 0.587 * 255


def test_sixteen_bits_become_the_upper_eight_and_transparency_is_dropped(draw):
    deep = np.array([[0, 255, 256], [4096, 32768, 65535]], dtype=np.uint16)
    assert read_images(files(draw("deep.png", deep)), None, 1).tolist() == [[[[0, 0, 1], [16, 128, 255]]]]
    clear = np.dstack([noise(4, 4), np.zeros((4, 4), dtype=np.uint8)])
    found = read_images(files(draw("clear.png", clear)), None, 3)
    np.testing.assert_array_equal(found[0], clear[:, :, :3].transpose(2, 0, 1))


@pytest.mark.parametrize(("brightest", "bits"), [(200, 8), (1023, 10), (4095, 12), (4096, 13), (65535, 16)])
def test_images_of_sixteen_bits_are_scaled_by_the_range_that_all_of_them_use(draw, brightest, bits):
    bright = np.full((4, 4), brightest, dtype=np.uint16)
    draw("d/a/bright.png", bright)
    draw("d/b/dark.png", bright // 4)
    draw("d/b/dark.tif", bright // 4)
    source = open_source("images:d")
    [(_, block)] = source.blocks()
    assert block["image"].shape == (3, 1, 4, 4)
    found = block["image"][:, 0, 0, 0]
    assert found.tolist() == [value >> (bits - 8) for value in (brightest, brightest // 4, brightest // 4)]
    assert bool(source.notes) == (bits < 16)
    assert all(f"use {bits} of them" in note for note in source.notes)


def test_a_brighter_image_than_those_of_the_sample_is_cut_at_white(draw):
    paths = [
        draw(f"{name}.png", np.full((2, 2), value, dtype=np.uint16))
        for name, value in (("a", 4095), ("b", 9000))
    ]
    pixels, _ = read_pixels(encoded_files(files(*paths)), None, 1, bits=12)
    assert [int(image.max()) for image in pixels] == [255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "PA"])
def test_images_of_every_mode_become_greyscale_and_rgb(mode, tmp_path):
    image = Image.new(mode, (4, 4))
    assert item_pixels(image).shape[1:] == (4, 4)
    assert item_pixels(image).dtype == np.uint8


def test_a_photograph_is_turned_upright_as_its_exif_says(draw):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right side
    image = np.zeros((4, 6), dtype=np.uint8)
    image[0] = 255
    found = read_images(files(draw("phone.png", image, exif=exif)), None, 1)[0, 0]
    assert found.shape == (6, 4)
    assert found[:, -1].tolist() == [255] * 6


def test_of_an_animation_the_first_frame_is_read(draw, tmp_path):
    first, second = (Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    assert read_images(files(tmp_path / "x.gif"), None, 3)[0, :, 0, 0].tolist() == list(RED)


def test_images_of_different_sizes_need_a_size(draw):
    both = files(draw("a.png", size=(8, 6)), draw("b.png", size=(5, 4)))
    message = refusal(read_images, both, None, 3)
    assert "2 sizes, from (4, 5) to (6, 8)" in message
    assert "set data.shape=[channels, height, width]" in message


def test_all_broken_files_are_named_in_one_error_the_first_five_by_name_and_reason(draw, tmp_path):
    good = draw("good.png", noise(30, 30))
    cut = tmp_path / "a.png"
    cut.write_bytes(good.read_bytes()[:600])
    (tmp_path / "b.png").write_bytes(b"")
    Image.fromarray(np.ones((3, 3), dtype=np.float32)).save(tmp_path / "c.tif")
    later = [tmp_path / f"d{number}.png" for number in range(5)]
    for path in later:
        path.write_text("<html>not found</html>")
    paths = [cut, good, tmp_path / "b.png", tmp_path / "c.tif", tmp_path / "gone.png", *later]
    message = refusal(read_images, files(*paths), (8, 8), 3)
    assert "images that cannot be read: 9: " in message
    assert f"{cut} (" in message
    assert f"{tmp_path / 'b.png'} (no format that is known)" in message
    assert f"{tmp_path / 'c.tif'} (pixels of 32 bits" in message
    assert f"{tmp_path / 'gone.png'} (" in message
    assert "d0.png" in message
    assert "d1.png" not in message
    assert message.endswith(", and 4 more: fix or remove them")
    assert str(good) not in message


# Shape.


def test_the_shape_of_small_images_is_their_median_and_of_large_ones_224(draw):
    small = [draw(f"s{n}.png", size=size) for n, size in enumerate([(8, 6), (10, 7), (64, 64)])]
    assert image_shape(files(*small)) == (3, 7, 10)
    assert image_shape(files(draw("wide.png", size=(65, 10)))) == (3, 224, 224)


def test_there_is_one_channel_if_every_image_is_greyscale(draw):
    grey = [draw("a.png", noise(4, 4, 1)), draw("b.png", noise(4, 4, 1).astype(np.uint16))]
    assert image_shape(files(*grey)) == (1, 4, 4)
    assert image_shape(files(*grey, draw("c.png", noise(4, 4)))) == (3, 4, 4)


def test_the_shape_is_taken_from_a_sample_spread_over_all_files_that_passes_over_broken_ones(draw, tmp_path):
    (tmp_path / "broken.png").write_text("")
    grey, colour = draw("a.png", noise(4, 4, 1)), draw("b.png", noise(4, 4))
    assert image_shape(files(tmp_path / "broken.png", *[grey] * 1000, *[colour] * 100)) == (3, 4, 4)
    assert "cannot be read: 1: " in refusal(image_shape, files(tmp_path / "broken.png"))


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (3, 0, 8)])
def test_a_shape_that_images_cannot_have_is_refused(draw, shape):
    draw("d/a/1.png"), draw("d/b/1.png")
    assert f"data.shape={list(shape)} is no shape of images" in refusal(open_images, "d", shape)


# Sources.


def test_a_source_yields_blocks_of_pixels_and_class_names_in_the_order_of_the_paths(draw, monkeypatch):
    pixels = [noise(4, 5, seed=number) for number in range(5)]
    for number, image in enumerate(pixels):
        draw(f"d/{'ab'[number > 2]}/{number}.png", image)
    monkeypatch.setattr(module, "BLOCK_BYTES", 2 * pixels[0].nbytes)
    source = open_source("images:d")
    blocks = [block for _, block in source.blocks()]
    assert [len(block["target"]) for block in blocks] == [2, 2, 1]
    assert source.nbytes == 5 * pixels[0].nbytes == sum(block["image"].nbytes for block in blocks)
    found = np.concatenate([block["image"] for block in blocks])
    np.testing.assert_array_equal(found, np.stack(pixels).transpose(0, 3, 1, 2))
    assert found.dtype == np.uint8
    assert np.concatenate([block["target"] for block in blocks]).tolist() == ["a", "a", "a", "b", "b"]
    assert blocks[0]["target"].dtype == object


def test_a_source_brings_images_to_the_shape_that_is_asked_for(draw):
    draw("d/a/1.png", size=(30, 20)), draw("d/b/1.png", size=(10, 40))
    [(_, block)] = open_source("images:d", shape=(1, 12, 16)).blocks()
    assert block["image"].shape == (2, 1, 12, 16)


def test_broken_files_of_all_blocks_are_named_together(draw, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    for number in range(6):
        draw(f"d/{'ab'[number % 2]}/{number}.png")
    for name in ("a/2.png", "b/5.png"):
        (tmp_path / "d" / name).write_text("")
    message = refusal(list, open_source("images:d").blocks())
    assert "cannot be read: 2: " in message
    assert "a/2.png" in message
    assert "b/5.png" in message


def test_the_fingerprint_changes_with_a_pixel_a_class_and_the_shape_and_not_with_the_place(draw, tmp_path):
    image = noise(4, 4)
    draw("d/a/1.bmp", image), draw("d/b/2.bmp", image), draw("d/b/3.bmp", image)
    first = open_source("images:d").fingerprint
    shutil.copytree(tmp_path / "d", tmp_path / "elsewhere/d")
    assert open_source(f"images:{tmp_path}/elsewhere/d").fingerprint == first
    assert open_source("images:d", shape=(3, 5, 5)).fingerprint != first
    (tmp_path / "d/b/2.bmp").rename(tmp_path / "d/a/2.bmp")
    moved = open_source("images:d").fingerprint
    assert moved != first
    image[0, 0, 0] ^= 1
    draw("d/a/2.bmp", image)
    assert open_source("images:d").fingerprint not in (first, moved)


def test_the_fingerprint_of_a_large_source_is_of_names_classes_and_sizes_without_reading_it(
    draw, monkeypatch, tmp_path
):
    draw("d/a/1.bmp"), draw("d/b/2.bmp"), draw("d/b/3.bmp")
    shape = (3, 5000, 6000)
    source = open_source("images:d", shape=shape)
    assert not source.is_small
    monkeypatch.setattr(module, "read_pixels", None)
    first = source.fingerprint
    assert open_source("images:d", shape=shape).fingerprint == first
    (tmp_path / "d/b/2.bmp").rename(tmp_path / "d/a/2.bmp")
    assert open_source("images:d", shape=shape).fingerprint != first


def test_a_folder_that_was_opened_can_be_sent_to_another_process(draw):
    draw("d/a/1.png", RED), draw("d/b/1.png", BLUE)
    folder = pickle.loads(pickle.dumps(open_images("d")))
    [block] = folder.blocks()
    assert block["image"][:, :, 0, 0].tolist() == [list(RED), list(BLUE)]


def test_other_images_are_read_in_the_depth_and_shape_of_those_that_a_model_was_trained_on(draw):
    for name, value, side in (("trained", 4095, 6), ("other", 1023, 9)):
        for number in range(12):
            pixels = np.full((side, side), value, dtype=np.uint16)
            draw(f"{name}/{'ab'[number % 2]}/{number}.png", pixels)
    data = DataConfig(source="images:trained", global_batch_size=2, validation_fraction=0, test_fraction=0)
    source = open_data(data, "image_classification", 0)
    spec = preprocessing_spec(data, "image_classification", 0, source)
    transform = inspect_source(source, spec).transform
    assert (transform.image_bits, transform.input_shape) == (12, (1, 6, 6))
    again = reopen_source(spec, "image_classification", "images:other", transform.input_shape)
    [(_, block)] = again.blocks()
    assert block["image"].shape == (12, 1, 6, 6)
    assert set(block["image"].ravel().tolist()) == {1023 >> 4}
