"""The same pictures with boxes in the five formats that `boxes:` reads."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

# A class and left, top, right, bottom in whole pixels.
Object = tuple[str, int, int, int, int]


class Picture(NamedTuple):
    name: str
    split: str
    pixels: np.ndarray  # [height, width, 3] uint8
    objects: Sequence[Object]

    @property
    def png(self) -> bytes:
        out = io.BytesIO()
        PIL.Image.fromarray(self.pixels).save(out, "PNG")
        return out.getvalue()


def pictures(count: int = 12, seed: int = 0) -> list[Picture]:
    """Make pictures of two sizes, with up to three boxes of three classes; every fifth has none."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        height, width = ((40, 48), (32, 64))[number % 2]
        objects: list[Object] = []
        for _ in range(0 if number % 5 == 4 else int(draw.integers(1, 4))):
            left, top = int(draw.integers(0, width - 16)), int(draw.integers(0, height - 16))
            right, bottom = left + int(draw.integers(4, 16)), top + int(draw.integers(4, 16))
            objects.append((("zebra", "ant", "cat")[int(draw.integers(3))], left, top, right, bottom))
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        split = "train" if number < count * 2 // 3 else "val"
        found.append(Picture(f"{number:04}.png", split, pixels, objects))
    return found


def write_coco(folder: Path, made: Sequence[Picture], ids: Sequence[int] = (7, 1, 30)) -> Path:
    """Write annotations with the numbers `ids` for the classes, which have gaps."""
    numbers = dict(zip(("zebra", "ant", "cat"), ids, strict=True))
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).mkdir()
        some = [picture for picture in made if picture.split == split]
        for picture in some:
            (folder / split / picture.name).write_bytes(picture.png)
        images = [
            {"id": 100 + n, "file_name": p.name, "height": p.pixels.shape[0], "width": p.pixels.shape[1]}
            for n, p in enumerate(some)
        ]
        annotations = [
            {
                "image_id": 100 + n,
                "category_id": numbers[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": 0,
            }
            for n, p in enumerate(some)
            for label, x1, y1, x2, y2 in p.objects
        ]
        data = {
            "images": images[::-1],
            "categories": [{"id": number, "name": name} for name, number in numbers.items()],
            "annotations": [{"id": n, **one} for n, one in enumerate(annotations)],
        }
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(data))
    return folder


def write_voc(folder: Path, made: Sequence[Picture]) -> Path:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for picture in made:
        (folder / "JPEGImages" / picture.name).write_bytes(picture.png)
        (folder / "Annotations" / f"{picture.name[:-4]}.xml").write_text(voc_xml(picture))
    for split in ("train", "val"):
        names = [picture.name[:-4] for picture in made if picture.split == split]
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names))
    return folder


def voc_xml(picture: Picture) -> str:
    height, width = picture.pixels.shape[:2]
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax>"
        f"<ymax>{y2}</ymax></bndbox></object>"
        for label, x1, y1, x2, y2 in picture.objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{picture.name}</filename>{size}{objects}</annotation>"


def write_yolo(folder: Path, made: Sequence[Picture]) -> Path:
    names = ["cat", "zebra", "ant"]
    for picture in made:
        height, width = picture.pixels.shape[:2]
        for kind in ("images", "labels"):
            (folder / kind / picture.split).mkdir(parents=True, exist_ok=True)
        (folder / "images" / picture.split / picture.name).write_bytes(picture.png)
        lines = [
            f"{names.index(label)} {(x1 + x2) / 2 / width:.6f} {(y1 + y2) / 2 / height:.6f} "
            f"{(x2 - x1) / width:.6f} {(y2 - y1) / height:.6f}"
            for label, x1, y1, x2, y2 in picture.objects
        ]
        if lines:
            (folder / "labels" / picture.split / f"{picture.name[:-4]}.txt").write_text("\n".join(lines))
    data = {"path": "../datasets/pictures", "train": "images/train", "val": "images/val"}
    data["names"] = dict(enumerate(names))
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder


def write_objects(folder: Path, made: Sequence[Picture]) -> Path:
    names = ["ant", "zebra", "cat"]
    folder.mkdir(parents=True)
    kind = pa.struct([("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.int64()))])
    feature = {"bbox": {"feature": {}}, "category": {"feature": {"names": names, "_type": "ClassLabel"}}}
    about = {"info": {"features": {"objects": {**feature, "_type": "Sequence"}}}}
    for split, name in (("train", "train"), ("val", "validation")):
        some = [picture for picture in made if picture.split == split]
        objects = [
            {
                "bbox": [[x1, y1, x2 - x1, y2 - y1] for _, x1, y1, x2, y2 in picture.objects],
                "category": [names.index(label) for label, *_ in picture.objects],
            }
            for picture in some
        ]
        images = [{"bytes": picture.png, "path": picture.name} for picture in some]
        table = pa.table({"image": images, "objects": pa.array(objects, kind)})
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
        pq.write_table(table, folder / f"{name}-00000-of-00001.parquet")
    return folder


def write_image_folder(folder: Path, made: Sequence[Picture]) -> Path:
    for split, name in (("train", "train"), ("val", "validation")):
        (folder / name).mkdir(parents=True)
        lines = []
        for picture in made:
            if picture.split == split:
                (folder / name / picture.name).write_bytes(picture.png)
                boxes = [[x1, y1, x2 - x1, y2 - y1] for _, x1, y1, x2, y2 in picture.objects]
                objects = {"bbox": boxes, "categories": [label for label, *_ in picture.objects]}
                lines.append(json.dumps({"file_name": picture.name, "objects": objects}))
        (folder / name / "metadata.jsonl").write_text("\n".join(lines))
    return folder
