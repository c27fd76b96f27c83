import io
import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from box_formats import (
    pictures,
    voc_xml,
    write_coco,
    write_image_folder,
    write_objects,
    write_voc,
    write_yolo,
)
from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.data.sources.boxes import open_boxes
from shoal.data.sources.open import open_source
from shoal.errors import DataError
from shoal.tasks.open_data import open_data, preprocessing_spec

WRITERS = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "objects": write_objects,
    "folder": write_image_folder,
}


def opened(folder, **options):
    return open_boxes(f"boxes:{folder}", str(folder), **options)


def rows(source):
    return [(block["image"], block["target"]) for _, block in source.blocks()]


def test_the_same_pictures_in_five_formats_are_the_same_data(tmp_path):
    made = pictures()
    sources = {name: opened(write(tmp_path / name, made)) for name, write in WRITERS.items()}
    assert len({source.fingerprint for source in sources.values()}) == 1
    for source in sources.values():
        assert source.categories == ("ant", "cat", "zebra")
        assert [part.split for part in source.parts] == ["train", "validation"]
        assert source.notes == ("2 of 12 images have no boxes: they count as images without objects",)
    moved = [made[0]._replace(objects=[("ant", 1, 1, 9, 9)]), *made[1:]]
    assert opened(write_coco(tmp_path / "moved", moved)).fingerprint != sources["coco"].fingerprint


@pytest.mark.parametrize("ids", [(1, 2, 3), (90, 7, 1), (0, 1, 2)])
def test_classes_go_by_name_whatever_their_numbers(tmp_path, ids):
    made = pictures()
    expected = rows(opened(write_coco(tmp_path / "one", made)))
    found = rows(opened(write_coco(tmp_path / "other", made, ids)))
    for (_, one), (_, other) in zip(expected, found, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_boxes_are_in_pixels_of_the_shape_that_images_are_stretched_to(tmp_path):
    made = [picture._replace(objects=[("ant", 8, 4, 24, 20)]) for picture in pictures(2)]
    source = opened(write_yolo(tmp_path / "data", made), shape=(1, 20, 96))
    [(images, targets)] = rows(source)[:1]
    assert images.shape == (1, 1, 20, 96)
    assert targets[0].tolist() == [[0, 16, 2, 48, 10]]


def test_boxes_that_are_none_are_counted_dropped_and_named(tmp_path):
    folder = write_coco(tmp_path / "data", pictures())
    path = folder / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    image = data["images"][0]["id"]
    boxes = [[5, 5, 0, 9], [5, 5, 9, -1], [500, 5, 9, 9], [5, float("nan"), 9, 9], [-4, -4, 10, 10]]
    data["annotations"] += [
        {"id": 900 + number, "image_id": image, "category_id": 1, "bbox": box}
        for number, box in enumerate(boxes)
    ] + [{"id": 990, "image_id": image, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 1}]
    path.write_text(json.dumps(data))
    source, name = opened(folder), data["images"][0]["file_name"]
    assert source.notes[1:] == (
        f"1 box is left out: it is a crowd (iscrowd), not one object ({name})",
        f"2 boxes are left out: its width or height is 0 or less ({name})",
        f"1 box is left out: it is outside of its image ({name})",
        f"1 box is left out: a number of it is NaN or infinite ({name})",
    )
    cut = [row.tolist() for _, targets in rows(source) for boxes in targets for row in boxes]
    assert any(row[1:3] == [0, 0] and row[3:] == [6, 6] for row in cut)


def test_a_missing_picture_and_one_that_is_annotated_twice_are_refused(tmp_path):
    made = pictures()
    for name, write in list(WRITERS.items())[:2]:
        folder = write(tmp_path / name, made)
        next(folder.rglob(made[3].name)).unlink()
        with pytest.raises(DataError, match=f"1 annotated images are not there: {made[3].name}"):
            opened(folder)
    folder = write_voc(tmp_path / "twice", made)
    (folder / "Annotations" / "other.xml").write_text(voc_xml(made[0]))
    with pytest.raises(DataError, match=f"'JPEGImages/{made[0].name}' is annotated twice"):
        opened(folder)
    data_file = write_yolo(tmp_path / "none", made) / "data.yaml"
    data = yaml.safe_load(data_file.read_text()) | {"val": "images/valid"}
    data_file.write_text(yaml.safe_dump(data))
    with pytest.raises(DataError, match="not there: images/valid"):
        opened(data_file)


def break_coco(folder):
    path = folder / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    data["annotations"][0]["bbox"] = [1, 2, 3]
    path.write_text(json.dumps(data))


def break_voc(folder):
    path = folder / "Annotations" / "0000.xml"
    path.write_text(path.read_text().replace("<ymin>", "<y>", 1).replace("</ymin>", "</y>", 1))


def break_yolo(folder):
    (folder / "labels" / "train" / "0000.txt").write_text("0 0.5 0.5 0.1")


def break_objects(folder):
    path = next(folder.glob("train*"))
    table = pq.read_table(path)
    objects = table.column("objects").to_pylist()
    objects[0]["bbox"][0] = [1.0, 2.0, 3.0]
    column = table.schema.get_field_index("objects")
    field = table.schema.field(column)
    pq.write_table(table.set_column(column, field, pa.array(objects, field.type)), path)


def break_folder(folder):
    path = folder / "train" / "metadata.jsonl"
    first, *others = path.read_text().splitlines()
    item = json.loads(first)
    item["objects"]["bbox"][0] = [1, 2, 3]
    path.write_text("\n".join([json.dumps(item), *others]))


BREAKS = {
    "coco": break_coco,
    "voc": break_voc,
    "yolo": break_yolo,
    "objects": break_objects,
    "folder": break_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_box_of_three_numbers_is_refused_with_its_picture(tmp_path, name):
    folder = WRITERS[name](tmp_path / name, pictures())
    BREAKS[name](folder)
    with pytest.raises(
        DataError, match=r"image '.*(0000.png|:0).*' has the box \[.*\]: a box has four numbers"
    ):
        opened(folder)


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_ids_that_are_not_unique_are_refused(tmp_path, kind):
    """Of two images with one id, one would be gone, and the other have its boxes."""
    folder = write_coco(tmp_path / "coco", pictures())
    path = folder / "annotations" / "instances_train2017.json"
    data = json.loads(path.read_text())
    data[kind].append(data[kind][0] | {"file_name": "other.png", "name": "other"})
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=f"has several {kind} with id {data[kind][0]['id']}: give each"):
        opened(folder)


def test_a_polygon_with_a_word_is_refused_with_its_line(tmp_path):
    folder = write_yolo(tmp_path / "yolo", pictures())
    (folder / "labels" / "train" / "0000.txt").write_text("0 0.1 0.1 0.5 0.1 x 0.5")
    with pytest.raises(DataError, match=r"0000.png \(line 1\)' has the polygon \["):
        opened(folder / "data.yaml")


def test_a_list_of_images_may_have_spaces_in_their_names(tmp_path):
    folder = write_yolo(tmp_path / "yolo", pictures())
    images = sorted((folder / "images" / "train").iterdir())
    labels = folder / "labels" / "train" / f"{images[0].stem}.txt"
    images[0].rename(images[0].with_name("my first.png"))
    labels.rename(labels.with_name("my first.txt"))
    listed = ["images/train/my first.png", *(f"images/train/{image.name}" for image in images[1:])]
    (folder / "train.txt").write_text("\n".join(listed) + "\n\n")
    data_file = folder / "data.yaml"
    data_file.write_text(yaml.safe_dump(yaml.safe_load(data_file.read_text()) | {"train": "train.txt"}))
    assert sum(len(targets) for _, targets in rows(opened(data_file))) == len(pictures())


def test_a_picture_of_another_size_than_its_annotation_says_is_refused(tmp_path):
    folder = write_voc(tmp_path / "data", pictures())
    other = io.BytesIO()
    PIL.Image.new("RGB", (31, 17)).save(other, "PNG")
    (folder / "JPEGImages" / "0001.png").write_bytes(other.getvalue())
    with pytest.raises(DataError, match=r"0001.png' is 31x17 pixels, and its annotation says 64x32"):
        rows(opened(folder))


def test_a_class_of_held_out_boxes_alone_is_counted_and_named(tmp_path):
    made = [
        picture._replace(objects=[("cat" if picture.split == "train" else "ant", 2, 2, 12, 12)])
        for picture in pictures()
    ]
    data = DataConfig(source=f"boxes:{write_coco(tmp_path / 'data', made)}", global_batch_size=4)
    source = open_data(data, "object_detection", 0)
    info = inspect_source(source, preprocessing_spec(data, "object_detection", 0, source))
    assert "1 class has no training boxes and cannot be learnt: 'ant' (4 boxes)" in info.notes
    assert info.transform.categories == ("ant", "cat")
    assert info.transform.outputs == 2


def test_other_data_are_read_with_the_classes_of_a_trained_model(tmp_path):
    made = [picture._replace(objects=[("cat", 2, 2, 12, 12)]) for picture in pictures()]
    folder = write_coco(tmp_path / "data", made)
    source = opened(folder, categories=("zebra", "cat"))
    assert {row[0] for _, targets in rows(source) for boxes in targets for row in boxes} == {1}
    with pytest.raises(DataError, match="box of class 'cat', which is not among the 1 classes of the model"):
        opened(folder, categories=("zebra",))


@pytest.mark.parametrize(
    ("files", "pieces"),
    [
        ({}, ["holds no annotations"]),
        ({"a.json": '{"images": 3, "categories": [], "annotations": []}'}, ["a.json", "no COCO JSON"]),
        (
            {"metadata.jsonl": '{"file_name": "a.png"}'},
            ["line 1 of 'metadata.jsonl'", "is no image with objects"],
        ),
        ({"a.xml": "<annotation>"}, ["a.xml", "no Pascal VOC XML"]),
        ({"a.yaml": "names: [a]\ntrain: [1"}, ["holds no annotations"]),
    ],
)
def test_damaged_annotations_are_refused(tmp_path, files, pieces):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as refused:
        opened(tmp_path)
    assert all(piece in str(refused.value) for piece in pieces)


def test_data_without_boxes_are_refused(tmp_path):
    with pytest.raises(DataError, match="learns from images with boxes"):
        open_data(DataConfig(source="sklearn:digits"), "object_detection", 0)
    with pytest.raises(DataError, match="is not there"):
        opened(tmp_path / "none")
    empty = [picture._replace(objects=[]) for picture in pictures()]
    with pytest.raises(DataError, match="none of 12 images has a box"):
        opened(write_coco(tmp_path / "empty", empty))


def test_scattered_digits_are_a_function_of_the_seed_and_of_their_number():
    one, same, other = (open_source(f"synthetic:detection?rows=40&size=48&seed={seed}") for seed in (0, 0, 1))
    found, again, differing = ([block for _, block in source.blocks()] for source in (one, same, other))
    assert [len(block["image"]) for block in found] == [32, 4, 4]
    assert np.array_equal(found[0]["image"], again[0]["image"])
    assert not np.array_equal(found[0]["image"], differing[0]["image"])
    for image, boxes in zip(found[0]["image"], found[0]["target"], strict=True):
        assert 1 <= len(boxes) <= 5
        for _, left, top, right, bottom in boxes.astype(int):
            assert 0 <= left < right <= 48
            assert 0 <= top < bottom <= 48
            assert image[0, top:bottom, left:right].max() > 100
