"""A source is read by the driver, or by a cluster where it is too large: the rows and their splits are equal.

Every scheme has a case here, every kind of what a user's function returns too; rows that a source states to be of the
test split are never trained on.
"""

import ast
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from running import ROOT
from shoal.data.dataset_info import DatasetInfo
from shoal.data.partition import WorkerRows, concatenate
from shoal.data.sampler import SPLITS, TEST, TRAIN, VALIDATION
from shoal.data.sources.open import READERS, TEXT
from shoal.data.tokenizer import tokenizer_from_json
from shoal.errors import DataError
from shoal.runs.config import RunConfig
from shoal.runs.validate import RunPlan, validate_data

pytestmark = pytest.mark.long

FUNCTION = "function"  # the scheme of `package.module:function`
LIMIT = 200  # bytes: every source here is larger
WORKERS = 2
ROWS = {TRAIN: 60, VALIDATION: 20, TEST: 20}
CODE = {split: number for number, split in enumerate(SPLITS)}


# What the rows are: each says by its content which split it was given in.


def frame(split: str) -> pd.DataFrame:
    """Rows with ids from 1000 * the split's number on, which are what is learnt; `count` has two types."""
    draw = np.random.default_rng(CODE[split])
    rows = ROWS[split]
    count = draw.integers(0, 9, rows)
    return pd.DataFrame(
        {
            "size": draw.normal(size=rows).round(6),
            "count": count.astype(np.int64) if split == TRAIN else count + 0.5,
            "city": np.where(draw.random(rows) < 0.2, None, draw.choice(["Oslo", "Lima"], rows)),
            "target": 1000 * CODE[split] + np.arange(rows),
        }
    )


def pixels(split: str) -> np.ndarray:
    """Images [n, 6, 5, 3] of one value each, of another range in each split."""
    values = 80 * CODE[split] + np.arange(ROWS[split])
    return np.broadcast_to(values[:, None, None, None], (ROWS[split], 6, 5, 3)).astype(np.uint8)


def documents(split: str) -> list[str]:
    """Texts of one letter each, of another one in each split."""
    return ["abc"[CODE[split]] * (40 + row) for row in range(ROWS[split])]


def codes_of_ids(info: DatasetInfo, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return (info.transform.label.values(targets).round() // 1000).astype(int)


def codes_of_pixels(info: DatasetInfo, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    assert inputs.dtype == np.uint8
    return inputs[:, 0, 0, 0] // 80


def codes_of_texts(info: DatasetInfo, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    assert info.transform.tokenizer is not None
    tokenizer = tokenizer_from_json(info.transform.tokenizer)
    letters = [set(tokenizer.decode(row)) & set("abc") for row in inputs]
    assert all(len(found) == 1 for found in letters)
    return np.array(["abc".index(found.pop()) for found in letters])


# How they are written.


def write_csv(path: Path, rows: pd.DataFrame) -> None:
    rows.to_csv(path, index=False)


def write_parquet(path: Path, rows: pd.DataFrame) -> None:
    rows.to_parquet(path, row_group_size=25)


def write_json_lines(path: Path, rows: pd.DataFrame) -> None:
    rows.to_json(path, orient="records", lines=True)


def write_json_array(path: Path, rows: pd.DataFrame) -> None:
    path.write_text(json.dumps(json.loads(rows.to_json(orient="records"))))


def write_npz(path: Path, rows: pd.DataFrame) -> None:
    np.savez(path, size=rows["size"], many=np.ones((len(rows), 2, 2)), target=rows["target"])


def write_text(path: Path, rows: pd.DataFrame) -> None:
    split = SPLITS[int(rows["target"].iloc[0]) // 1000]
    path.write_text("".join(documents(split)))


Write = Callable[[Path, pd.DataFrame], None]


def in_folders(write: Write, suffix: str, splits: tuple[str, ...] = SPLITS) -> Callable[[Path], None]:
    """Two files for each split, in folders named after the splits."""

    def make(folder: Path) -> None:
        for split in splits:
            inner = folder / {VALIDATION: "valid"}.get(split, split) / "deeper"
            inner.mkdir(parents=True)
            rows = frame(split)
            write(inner.parent / f"b{suffix}", rows.iloc[:10])
            write(inner / f"a{suffix}", rows.iloc[10:])

    return make


def in_files(write: Write, name: str) -> Callable[[Path], None]:
    """A file for each split, named after it."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for split in SPLITS:
            write(folder / name.format(split), frame(split))

    return make


def without_splits(write: Write, suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "x=1").mkdir(parents=True)
        write(folder / "x=1" / f"z{suffix}", frame(TRAIN))
        write(folder / f"a{suffix}", frame(VALIDATION))

    return make


def image_folders(folder: Path) -> None:
    for split in SPLITS:
        for row, image in enumerate(pixels(split)):
            path = folder / split / "ab"[row % 2] / f"{row:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def boxed_images(folder: Path) -> None:
    """As COCO's, with a box in each image."""
    categories = [{"id": 7, "name": "square"}]
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for row, image in enumerate(pixels(split)):
            Image.fromarray(image).save(folder / split / f"{row:03}.png")
            images.append({"id": row, "file_name": f"{split}/{row:03}.png", "width": 5, "height": 6})
            annotations.append({"id": row, "image_id": row, "category_id": 7, "bbox": [0, 0, 4, 4]})
        data = {"images": images, "categories": categories, "annotations": annotations}
        (folder / f"instances_{split}.json").write_text(json.dumps(data))


def hub_frames(folder: Path) -> None:
    parts = {split: datasets.Dataset.from_pandas(frame(split)) for split in SPLITS}
    parts[TEST] = parts[TEST].select(range(19, -1, -1))  # by an index, as `train_test_split` makes its parts
    datasets.DatasetDict(parts).save_to_disk(str(folder))


def hub_images(folder: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "target": datasets.Value("int64")})
    parts = {
        split: datasets.Dataset.from_dict(
            {
                "image": [Image.fromarray(image) for image in pixels(split)],
                "target": np.arange(ROWS[split]) % 2,
            },
            features=features,
        )
        for split in (TRAIN, TEST)
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder))


def hub_texts(folder: Path) -> None:
    parts = {
        split: datasets.Dataset.from_dict({"text": documents(split), "target": np.arange(ROWS[split]) % 2})
        for split in SPLITS
    }
    datasets.DatasetDict(parts).save_to_disk(str(folder))


FUNCTIONS = """
import numpy as np, pandas as pd
from torch.utils.data import Dataset

def frame(split, rows, code):
    draw = np.random.default_rng(code)
    return pd.DataFrame({"size": draw.normal(size=rows), "city": draw.choice(["Oslo", "Lima"], rows),
                          "target": 1000 * code + np.arange(rows)})

def given(make):
    return {"train": make("train", 60, 0), "val": make("val", 20, 1), "test": make("test", 20, 2)}

def frames(val=20):
    return given(lambda split, rows, code: frame(split, val if split == "val" else rows, code))

def columns():
    return given(lambda *part: {"x": np.ones((part[1], 2, 3)), "target": frame(*part)["target"].to_numpy()})

class Items(Dataset):
    def __init__(self, rows, code):
        self.rows, self.code = rows, code
    def __len__(self):
        return self.rows
    def __getitem__(self, row):
        return np.full((2, 100), row, dtype=np.float32), 1000 * self.code + row

def items():
    return given(lambda split, rows, code: Items(rows, code))

def ray_datasets():
    import ray.data
    return given(lambda *part: ray.data.from_pandas(frame(*part)).repartition(3))

def one_frame():
    return frame("train", 60, 0)

def one_set_of_items():
    return Items(60, 0)

def one_ray_dataset():
    import ray.data
    return ray.data.from_pandas(frame("train", 60, 0)).repartition(5)

def images():
    import io
    from PIL import Image
    def encode(value):
        buffer = io.BytesIO()
        Image.fromarray(np.full((6, 5, 3), value, dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()
    return given(lambda split, rows, code: pd.DataFrame(
        {"image": [encode(80 * code + row) for row in range(rows)], "target": [row % 2 for row in range(rows)]}))

def texts():
    return given(lambda split, rows, code: pd.DataFrame(
        {"text": ["abc"[code] * (40 + row) for row in range(rows)], "target": [row % 2 for row in range(rows)]}))
"""


@dataclass(frozen=True)
class Case:
    """A source, and what it states.

    Attributes:
        scheme: of its URI.
        make: writes it to a path; None: it needs no files.
        location: behind the scheme; `{}` is that path.
        codes: says of each row in which split the source gave it; None: the source states no splits.
        splits: that it states.
        task: that reads it.
        data: keys of the config.
        counts: whether there are as many rows as were given; text is packed into others.
    """

    scheme: str
    make: Callable[[Path], None] | None = None
    location: str = "{}"
    codes: Callable[[DatasetInfo, np.ndarray, np.ndarray], np.ndarray] | None = codes_of_ids
    splits: tuple[str, ...] = SPLITS
    task: str = "regression"
    data: dict[str, Any] = field(default_factory=dict)
    counts: bool = True

    @property
    def uri(self) -> str:
        return self.location if self.scheme == FUNCTION else f"{self.scheme}:{self.location}"


LANGUAGE = {"task": "causal_lm", "codes": codes_of_texts, "data": {"context": 16}, "counts": False}
TEXTS = {
    "task": "sequence_classification",
    "codes": codes_of_texts,
    "data": {"context": 16, "text": "text"},
}
IMAGES = {"task": "image_classification", "codes": codes_of_pixels}

CASES = {
    "csv folders": Case("csv", in_folders(write_csv, ".csv")),
    "csv files": Case("csv", in_files(write_csv, "{}.csv")),
    "csv of train and test": Case("csv", in_folders(write_csv, ".csv", (TRAIN, TEST)), splits=(TRAIN, TEST)),
    "csv without splits": Case("csv", without_splits(write_csv, ".csv"), codes=None),
    "parquet folders": Case("parquet", in_folders(write_parquet, ".parquet")),
    "parquet shards": Case("parquet", in_files(write_parquet, "{}-00000-of-00001.parquet")),
    "parquet by other names": Case("parquet", without_splits(write_parquet, ".pq"), codes=None),
    "json folders": Case("json", in_folders(write_json_lines, ".jsonl")),
    "json arrays": Case("json", in_files(write_json_array, "{}.json")),
    "json by other names": Case("json", without_splits(write_json_lines, ".rows"), codes=None),
    "npz folders": Case("npz", in_folders(write_npz, ".npz")),
    "npz without splits": Case("npz", without_splits(write_npz, ".npz"), codes=None),
    "text folders": Case("text", in_folders(write_text, ".txt"), **LANGUAGE),
    "text files": Case("text", in_files(write_text, "wiki.{}.tokens"), **LANGUAGE),
    "image folders": Case("images", image_folders, **IMAGES),
    "hub": Case("huggingface", hub_frames),
    "boxes": Case("boxes", boxed_images, task="object_detection", codes=codes_of_pixels),
    "hub images": Case("huggingface", hub_images, splits=(TRAIN, TEST), **IMAGES),
    "hub texts": Case("huggingface", hub_texts, **TEXTS),
    "hub documents": Case("huggingface", hub_texts, **LANGUAGE | {"data": TEXTS["data"]}),
    "frames": Case(FUNCTION, location="given_splits:frames"),
    "columns": Case(FUNCTION, location="given_splits:columns"),
    "torch datasets": Case(FUNCTION, location="given_splits:items"),
    "ray datasets": Case(FUNCTION, location="given_splits:ray_datasets"),
    "frames of images": Case(FUNCTION, location="given_splits:images", **IMAGES),
    "frames of texts": Case(FUNCTION, location="given_splits:texts", **TEXTS),
    "a torch dataset": Case(FUNCTION, location="given_splits:one_set_of_items", codes=None),
    "a ray dataset": Case(FUNCTION, location="given_splits:one_ray_dataset", codes=None),
    "a frame": Case(FUNCTION, location="given_splits:one_frame", codes=None),
    "sklearn": Case("sklearn", location="diabetes", codes=None),
    "synthetic": Case("synthetic", location="regression?rows=300&features=5", codes=None),
}


@pytest.fixture(scope="module")
def joined(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process joins the session's cluster, whose workers import a user's module from where it lies."""
    from shoal.cluster import session
    from shoal.runs.config import ScaleConfig

    folder = tmp_path_factory.mktemp("user")
    (folder / "given_splits.py").write_text(FUNCTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster["address"])
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        session.connect(ScaleConfig(num_workers=1), 0)
        yield
        session.disconnect()
        sys.modules.pop("given_splits", None)


def lower_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("base", "files", "function", "images"):
        monkeypatch.setattr(f"shoal.data.sources.{module}.IN_DRIVER_BYTES", LIMIT)


def make_plan(case: Case, place: Path, **data: Any) -> RunPlan:
    """Write the case's files, once, and open it."""
    if case.make is not None and not (place / "data").exists():
        case.make(place / "data")
    uri = case.uri.format(place / "data")
    settings = {"source": uri, "global_batch_size": 8, **case.data, **data}
    return validate_data(RunConfig.model_validate({"task": case.task, "seed": 3, "data": settings}))


def read(plan: RunPlan) -> tuple[DatasetInfo, list[WorkerRows]]:
    """Divide the rows among workers; returns each worker's."""
    import ray

    from shoal.cluster.shard_store import put_shards

    info, shards = put_shards(plan, WORKERS)
    if shards.resident:
        return info, [concatenate(ray.get(refs)) for refs in shards.refs]
    pairs = [[map(ray.get, pair) for pair in refs] for refs in shards.refs]
    return info, [concatenate([train | held_out for train, held_out in worker]) for worker in pairs]


@pytest.mark.parametrize("name", CASES)
def test_both_ways_give_the_same_rows_in_the_splits_that_the_source_states(
    joined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = CASES[name]
    plan = make_plan(case, tmp_path)
    info, workers = read(plan)
    lower_the_limit(monkeypatch)
    for resident in ("auto", False):
        large = make_plan(case, tmp_path, resident=resident)
        if name not in ("a frame", "sklearn"):  # what this process holds already, or comes with a library
            assert large.dataset_info is None
        found, others = read(large)
        assert found.model_copy(update={"fingerprint": info.fingerprint}) == info
        for mine, other in zip(workers, others, strict=True):
            for split in SPLITS:
                for one, two in zip(mine[split], other[split], strict=True):
                    assert one.dtype == two.dtype
                    np.testing.assert_array_equal(one, two)
    if case.codes is not None:
        check_splits(case, info, workers)


def check_splits(case: Case, info: DatasetInfo, workers: list[WorkerRows]) -> None:
    """Check that each row is in the split that the source states; a share of the training rows is held out where it
    states no validation split."""
    assert case.codes is not None
    codes = {
        split: np.concatenate([case.codes(info, *rows[split]) for rows in workers if len(rows[split][1])])
        for split in SPLITS
    }
    assert set(codes[TRAIN]) == {CODE[TRAIN]}
    assert set(codes[TEST]) == {CODE[TEST]}
    has_validation = VALIDATION in case.splits
    assert set(codes[VALIDATION]) == {CODE[VALIDATION if has_validation else TRAIN]}
    if case.counts:
        expected = {split: ROWS[split] for split in case.splits}
        found = {split: len(codes[split]) for split in SPLITS}
        if not has_validation:
            found[TRAIN] += found.pop(VALIDATION)
        assert found == expected


def test_a_cell_that_samples_do_not_show_changes_the_type_of_a_column_in_all_tasks(
    joined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that finds it has the others read again: x is text in both files, not a number in one of them."""
    for name, odd in (("a", "12 EUR"), ("b", "7")):
        rows = [f"{odd if n == 437 else n % 50},{n % 3}" for n in range(600)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.csv").write_text("\n".join(["x,target", *rows]) + "\n")
    for constant, size in (("WHOLE_BYTES", 1000), ("HEAD_BYTES", 400), ("SLICE_BYTES", 60)):
        monkeypatch.setattr(f"shoal.data.sources.csv_dialect.{constant}", size)
    case = Case("csv", codes=None)
    info, workers = read(make_plan(case, tmp_path))
    lower_the_limit(monkeypatch)
    found, others = read(make_plan(case, tmp_path))
    assert found == info
    for mine, other in zip(workers, others, strict=True):
        for split in SPLITS:
            for one, two in zip(mine[split], other[split], strict=True):
                np.testing.assert_array_equal(one, two)


def test_every_scheme_and_every_kind_of_source_has_a_case(joined: None, tmp_path: Path) -> None:
    assert {case.scheme for case in CASES.values()} == {*READERS, TEXT, FUNCTION}
    seen = set()
    for number, case in enumerate(CASES.values()):
        (tmp_path / str(number)).mkdir()
        seen.add(make_plan(case, tmp_path / str(number)).source.scheme)
    assert kinds_of_sources() - seen == set()


def kinds_of_sources() -> set[str]:
    """The schemes that the library's modules write into a `Source`."""
    found = set()
    for path in (ROOT / "platform" / "shoal" / "data" / "sources").glob("*.py"):
        names = {
            target.id: node.value.value
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Source":
                scheme = node.args[1]
                if isinstance(scheme, ast.Constant):
                    found.add(str(scheme.value))
                elif isinstance(scheme, ast.Name) and scheme.id in names:
                    found.add(str(names[scheme.id]))
    return found


def test_a_given_validation_split_without_rows_is_the_same_mistake_both_ways(
    joined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by the cluster, a share of the training rows used to be held out instead."""
    case = Case(FUNCTION, location="given_splits:frames?val=0")
    with pytest.raises(DataError, match="came out empty") as small:
        make_plan(case, tmp_path)
    lower_the_limit(monkeypatch)
    with pytest.raises(DataError, match="came out empty") as large:
        read(make_plan(case, tmp_path))
    assert str(small.value) == str(large.value)


def test_a_file_that_does_not_read_is_the_same_error_both_ways(
    joined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(folder: Path) -> None:
        folder.mkdir()
        write_csv(folder / "train.csv", frame(TRAIN))
        (folder / "test.csv").write_text("size,count,city,target\n1,2,Oslo,3\n1,2\n")

    case = Case("csv", make)
    with pytest.raises(DataError, match="does not read as csv") as small:
        make_plan(case, tmp_path)
    lower_the_limit(monkeypatch)
    with pytest.raises(DataError, match="does not read as csv") as large:
        read(make_plan(case, tmp_path))
    assert str(small.value) == str(large.value)
