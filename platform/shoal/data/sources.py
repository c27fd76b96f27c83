"""A `data.source` URI becomes a Source: blocks of rows read in this process, in a fixed order.

Blocks are plain dicts of arrays. Reading the same source in parallel with Ray Data's readers is
`shoal.cluster.ingest`'s affair; what a row means (splits, label, transform) is not known here.
"""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
from pyarrow import fs as arrow_fs

from shoal.data.images import open_images
from shoal.data.order import SPLIT_NAMES, TRAIN
from shoal.errors import DataError, UserError, nearest
from shoal.importing import find, is_path

Block = dict[str, np.ndarray]

# A source up to this size is read whole by the driver's checks, so that what they find is an error before
# anything is started; the rows then go to the workers from there rather than being read a second time.
IN_DRIVER_BYTES = 256 << 20
HASHED_BYTES = 1 << 30

_FILE_SCHEMES = ("csv", "parquet", "json", "npz")
_SCHEMES = ("sklearn", *_FILE_SCHEMES, "text", "images", "huggingface", "synthetic")
_SKLEARN = ("digits", "iris", "wine", "breast_cancer", "diabetes", "linnerud")
_CSV_READ = arrow_csv.ReadOptions(block_size=64 << 20)
_CSV_CONVERT = arrow_csv.ConvertOptions(strings_can_be_null=True)


@dataclass(frozen=True)
class Part:
    """Rows that are read in one order; `split` is set where the source itself says which split they are."""

    read: Callable[[], Iterator[Block]]
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        uri: as the user wrote it.
        scheme: which reader it is for.
        nbytes: estimated size, before reading.
        paths: the files, for the file schemes.
        is_ready: the features are what the model takes; nothing is to be standardised.
        value: what a user's function returned, for those that only Ray Data can read.
        tokenizer: the JSON of what made its tokens, where the rows are text.
    """

    uri: str
    scheme: str
    parts: tuple[Part, ...]
    nbytes: int
    paths: tuple[str, ...] = ()
    is_ready: bool = False
    value: Any = None
    digest: str | None = None
    tokenizer: str | None = None
    _cache: dict[int, list[Block]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def is_small(self) -> bool:
        """Whether this process may hold it whole."""
        return self.nbytes <= IN_DRIVER_BYTES

    def blocks(self) -> Iterator[tuple[str | None, Block]]:
        """Yield (split or None, rows) in the source's order; a small source is read once and kept."""
        for number, part in enumerate(self.parts):
            if not self.is_small:
                yield from ((part.split, block) for block in part.read())
                continue
            if number not in self._cache:
                self._cache[number] = list(part.read())
            yield from ((part.split, block) for block in self._cache[number])

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the content, to tell when the data under a run has changed."""
        if self.digest:
            return self.digest
        hasher = hashlib.sha256(self.scheme.encode())
        if self.paths:
            _hash_files(hasher, self.paths)
        elif self.is_small:
            for split, block in self.blocks():
                _hash_block(hasher, split, block)
        else:
            hasher.update(f"{self.uri} {self.nbytes}".encode())
        return hasher.hexdigest()[:16]


def open_source(uri: str, *, shape: tuple[int, ...] | None = None) -> Source:
    """Find the source a URI names; files are listed, nothing large is read.

    Args:
        shape: (channels, height, width) to bring the images of an `images:` source to; None: chosen from them.

    Raises:
        DataError: unknown scheme, nothing there, or an empty result.
        UserError: a user's function that cannot be imported or called.
    """
    scheme, colon, rest = uri.partition(":")
    if colon and scheme == "images":
        return _images(uri, rest, shape)
    if colon and scheme in _SCHEMES:
        opened = {"sklearn": _sklearn, "synthetic": _synthetic, "huggingface": _huggingface}
        return opened[scheme](uri, rest) if scheme in opened else _files(uri, scheme, rest)
    if is_function(uri):
        return _function(uri)
    raise DataError(
        f"data.source='{uri}' is not known{nearest(scheme, _SCHEMES)}: write one of "
        f"{', '.join(f'{name}:' for name in _SCHEMES)} or package.module:function"
    )


def is_function(uri: str) -> bool:
    """Whether a source is a user's function, `package.module:function`."""
    return uri.partition(":")[0] not in _SCHEMES and is_path(uri)


def of_value(uri: str, value: Any) -> Source:
    """Wrap what a user's function returned: a frame, a torch Dataset, a Ray Dataset, or a dict of splits."""
    if isinstance(value, Mapping) and value and set(value) <= set(SPLIT_NAMES):
        inner = {SPLIT_NAMES[name]: of_value(uri, part) for name, part in value.items()}
        if TRAIN not in inner:
            raise DataError(
                f"data.source='{uri}' returned splits {', '.join(value)}: 'train' must be among them"
            )
        return Source(
            uri,
            "splits",
            tuple(Part(part.read, split) for split, source in inner.items() for part in source.parts),
            nbytes=sum(source.nbytes for source in inner.values()),
            is_ready=inner[TRAIN].is_ready,
            value=inner,
        )
    if is_ray_dataset(value):
        return Source(
            uri, "ray", (Part(lambda: _ray_blocks(value)),), nbytes=IN_DRIVER_BYTES + 1, value=value
        )
    if isinstance(value, Mapping):
        block = {str(name): np.asarray(column) for name, column in value.items()}
        for name, column in block.items():
            if column.ndim == 0:
                raise DataError(
                    f"data.source='{uri}' returned one value as column '{name}': return an array of rows"
                )
        lengths = {name: len(column) for name, column in block.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"data.source='{uri}' returned columns of different lengths {lengths}: rows must match"
            )
        return _in_memory(uri, block)
    if hasattr(value, "to_pandas"):
        value = value.to_pandas()
    if hasattr(value, "iloc"):
        return _in_memory(uri, {str(name): to_array(value[name]) for name in value.columns})
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str | bytes):
        return _indexed(uri, value)
    raise DataError(
        f"data.source='{uri}' returned a {type(value).__name__}: return a pandas frame, a Ray Dataset, a "
        "map-style torch Dataset (with __len__ and __getitem__), or a dict of these by split"
    )


def is_ray_dataset(value: Any) -> bool:
    return any(base.__module__.startswith("ray.data") for base in type(value).__mro__)


def table_to_block(table: pa.Table) -> Block:
    """Turn an Arrow table into arrays: missing numbers are NaN, missing texts None."""
    return {
        name: to_array(_plain(table.column(name)).to_pandas(date_as_object=False))
        for name in table.column_names
    }


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column


def to_array(column: Any) -> np.ndarray:
    """Turn a pandas column into an array; lists of one length become a tensor [rows, ...]."""
    if str(column.dtype) in ("category", "string", "str"):
        return np.asarray(column.astype(object).where(column.notna(), None), dtype=object)
    if column.dtype.kind == "M":
        naive = (
            column.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(column.dtype, "tz", None) else column
        )
        return np.asarray(naive.to_numpy(dtype="datetime64[ns]"))
    if hasattr(column.dtype, "na_value") and column.dtype.kind in "iufb" and column.isna().any():
        return np.asarray(column.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan))
    array = np.asarray(column.to_numpy())
    first = next((item for item in array[:100] if item is not None), None) if array.dtype == object else None
    if isinstance(first, np.ndarray | list):
        try:
            return np.stack([np.asarray(item) for item in array])
        except ValueError:
            name = column.name
            raise DataError(
                f"column '{name}' holds lists of different lengths: make them equally long, or drop it"
            ) from None
    return array


def item_block(items: list[Any], label: str = "target") -> Block:
    """Stack the items of a map-style dataset: tuples (features, label) or dicts."""
    if isinstance(items[0], Mapping):
        return {str(name): np.stack([np.asarray(item[name]) for item in items]) for name in items[0]}
    if isinstance(items[0], tuple | list) and len(items[0]) == 2:
        return {
            "features": np.stack([np.asarray(item[0]) for item in items]),
            label: np.stack([np.asarray(item[1]) for item in items]),
        }
    raise DataError(
        f"an item of the dataset is a {type(items[0]).__name__}: return a pair (features, label) or a dict"
    )


def read_npz(data: Any, path: str) -> Block:
    """Read the arrays of one .npz file; their first dimension is the row."""
    with np.load(data, allow_pickle=False) as arrays:
        block = {name: arrays[name] for name in arrays.files}
    lengths = {name: len(array) for name, array in block.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"'{path}' holds arrays of different lengths {lengths}: rows must match")
    return block


def file_schema(source: Source) -> pa.Schema:
    """Return the columns of a csv, parquet or json source, unified over its files."""
    return _dataset(source.scheme, source.paths).schema


def synthetic_block(kind: str, first: int, rows: int, features: int, classes: int, seed: int) -> Block:
    """Make rows `first` to `first + rows`, each a pure function of its number.

    Classification: class centres in a 50-dimensional space, embedded linearly, with noise in both; the classes
    are apart enough for training to be a stable map, so that runs on different worker counts stay comparable.
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


SYNTHETIC_CHUNK = 4096


def synthetic_options(uri: str) -> dict[str, Any]:
    """Parse `synthetic:KIND?rows=...&features=...&classes=...&seed=...`."""
    kind, _, query = uri.removeprefix("synthetic:").partition("?")
    options = {"rows": 20000, "features": 1000, "classes": 10, "seed": 0}
    if kind not in ("classification", "regression"):
        raise DataError(
            f"data.source='{uri}': '{kind}' is not a synthetic set"
            f"{nearest(kind, ('classification', 'regression'))}: write synthetic:classification or :regression"
        )
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in options or not text.isdecimal() or (name != "seed" and int(text) < 1):
            raise DataError(
                f"data.source='{uri}': {name}={text or '(nothing)'} is not understood: "
                f"set {', '.join(options)} to whole numbers from 1"
            )
        options[name] = int(text)
    return {"kind": kind, **options}


def _sklearn(uri: str, name: str) -> Source:
    if name not in _SKLEARN:
        raise DataError(
            f"data.source='{uri}': '{name}' does not come with scikit-learn{nearest(name, _SKLEARN)}: "
            f"bundled are {', '.join(_SKLEARN)}"
        )

    def read() -> Iterator[Block]:
        from sklearn import datasets

        frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
        yield {str(column): to_array(frame[column]) for column in frame.columns}

    return Source(uri, "sklearn", (Part(read),), nbytes=1 << 20)


def _synthetic(uri: str, _: str) -> Source:
    options = synthetic_options(uri)
    rows, size = options.pop("rows"), options["features"] * 4 + 8
    step = max(SYNTHETIC_CHUNK, (64 << 20) // size // SYNTHETIC_CHUNK * SYNTHETIC_CHUNK)

    def read() -> Iterator[Block]:
        for first in range(0, rows, step):
            yield synthetic_block(first=first, rows=min(step, rows - first), **options)

    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Source(uri, "synthetic", (Part(read),), nbytes=rows * size, digest=digest)


def _files(uri: str, scheme: str, location: str) -> Source:
    paths, nbytes = list_files(uri, scheme, location)

    def read() -> Iterator[Block]:
        try:
            if scheme == "npz":
                for path in paths:
                    filesystem, inner = filesystem_of(path)
                    with filesystem.open_input_file(inner) as stream:
                        yield read_npz(stream, path)
            elif scheme == "json" and _is_json_array(paths[0]):
                for path in paths:
                    filesystem, inner = filesystem_of(path)
                    with filesystem.open_input_stream(inner) as stream:
                        yield table_to_block(_records(json.loads(stream.read())))
            else:
                yield from _read_tables(scheme, paths)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            if isinstance(error, UserError):
                raise
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data.source='{uri}' does not read as {scheme} ({reason}): mend the file, or name another scheme"
            ) from error

    return Source(uri, scheme, (Part(read),), nbytes=nbytes, paths=paths)


def _read_tables(scheme: str, paths: tuple[str, ...]) -> Iterator[Block]:
    dataset = _dataset(scheme, paths)
    if sum(_size(path) for path in paths) <= IN_DRIVER_BYTES:
        yield table_to_block(dataset.to_table())
        return
    for batch in dataset.to_batches(batch_size=1 << 16):
        if batch.num_rows:
            yield table_to_block(pa.Table.from_batches([batch]))


def _dataset(scheme: str, paths: tuple[str, ...]) -> Any:
    import pyarrow.dataset as arrow_dataset  # here, since it brings pandas along, which workers have no use for

    formats = {
        "csv": lambda: arrow_dataset.CsvFileFormat(
            parse_options=arrow_csv.ParseOptions(), read_options=_CSV_READ, convert_options=_CSV_CONVERT
        ),
        "json": lambda: arrow_dataset.JsonFileFormat(
            read_options=arrow_json.ReadOptions(block_size=64 << 20)
        ),
        "parquet": arrow_dataset.ParquetFileFormat,
    }
    filesystem, _ = filesystem_of(paths[0])
    inner = [filesystem_of(path)[1] for path in paths]
    each = [arrow_dataset.dataset([path], format=formats[scheme](), filesystem=filesystem) for path in inner]
    schema = pa.unify_schemas([one.schema for one in each], promote_options="permissive")
    if scheme == "csv":
        # The types seen over all files, so that a column of whole numbers in one and of fractions in the
        # next is read alike in both.
        convert = arrow_csv.ConvertOptions(strings_can_be_null=True, column_types=schema)
        reader = arrow_dataset.CsvFileFormat(read_options=_CSV_READ, convert_options=convert)
        return arrow_dataset.dataset(inner, format=reader, filesystem=filesystem, schema=schema)
    return arrow_dataset.dataset(inner, format=formats[scheme](), filesystem=filesystem, schema=schema)


def filesystem_of(path: str) -> tuple[arrow_fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path inside it."""
    if "://" in path:
        return arrow_fs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    return arrow_fs.LocalFileSystem(), os.path.abspath(path)


def _size(path: str) -> int:
    filesystem, inner = filesystem_of(path)
    return int(filesystem.get_file_info(inner).size or 0)


def list_files(uri: str, scheme: str, location: str) -> tuple[tuple[str, ...], int]:
    """List the files of a path, a glob, a directory or an s3:// prefix, sorted, with their total size."""
    hidden = (".",) if scheme == "text" else (".", "_")  # __init__.py is text, _SUCCESS is no table
    try:
        if "://" in location:
            filesystem, inner = filesystem_of(location)
            prefix = location[: len(location) - len(inner)]
            info = filesystem.get_file_info(inner)
            if info.type == arrow_fs.FileType.Directory:
                infos = filesystem.get_file_info(arrow_fs.FileSelector(inner, recursive=True))
                paths = [prefix + one.path for one in infos if one.type == arrow_fs.FileType.File]
            else:
                paths = [location] if info.type == arrow_fs.FileType.File else []
        elif os.path.isdir(os.path.expanduser(location)):
            pattern = os.path.join(os.path.expanduser(location), "**", "*")
            paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        else:
            paths = [path for path in glob.glob(os.path.expanduser(location)) if os.path.isfile(path)]
        paths = sorted(
            path for path in paths if path == location or not os.path.basename(path).startswith(hidden)
        )
        nbytes = sum(_size(path) for path in paths)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data.source='{uri}' cannot be listed ({error}): check the address") from None
    if not paths:
        raise DataError(
            f"data.source='{uri}': no file '{location}', seen from {os.getcwd()}: "
            f"give the path of a {scheme} file, a directory of them, or a glob"
        )
    if nbytes == 0:
        raise DataError(f"data.source='{uri}' is empty (0 bytes): give a file with rows")
    # Absolute: processes of a cluster that was there before have working directories of their own.
    return tuple(path if "://" in path else os.path.abspath(path) for path in paths), nbytes


def _records(rows: list[Any]) -> pa.Table:
    """A table of JSON objects, with every key that any of them has."""
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("its items are not all objects")
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _is_json_array(path: str) -> bool:
    filesystem, inner = filesystem_of(path)
    with filesystem.open_input_stream(inner) as stream:
        return bytes(stream.read(64)).lstrip()[:1] == b"["


def _huggingface(uri: str, name: str) -> Source:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"data.source='{uri}' needs the 'datasets' package: pip install 'shoal[huggingface]'"
        ) from None
    path, _, config = name.partition("?")
    try:
        loaded = (
            datasets.load_from_disk(path)
            if os.path.isdir(path) and _is_saved_to_disk(path)
            else datasets.load_dataset(path, **dict(parse_qsl(config)))
        )
    except Exception as error:
        raise DataError(
            f"data.source='{uri}' does not load ({type(error).__name__}: {str(error).splitlines()[0]}): "
            "give a data set's name on the hub, or a folder written by save_to_disk"
        ) from error
    splits = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    splits = {split: part for split, part in splits.items() if split in SPLIT_NAMES} or splits

    def part(split: str, rows: Any) -> Part:
        def read() -> Iterator[Block]:
            for first in range(0, len(rows), 1 << 16):
                yield table_to_block(rows.with_format("arrow")[first : first + (1 << 16)])

        return Part(read, SPLIT_NAMES[split] if len(splits) > 1 else None)

    parts = tuple(part(split, rows) for split, rows in splits.items())
    nbytes = sum(rows.data.nbytes for rows in splits.values())
    return Source(uri, "huggingface", parts, nbytes=nbytes, value=splits)


def _is_saved_to_disk(path: str) -> bool:
    return any(
        os.path.exists(os.path.join(path, name)) for name in ("dataset_info.json", "dataset_dict.json")
    )


def _images(uri: str, directory: str, shape: tuple[int, ...] | None) -> Source:
    folder = open_images(directory, shape)
    parts = tuple(Part(partial(folder.blocks, split), split) for split in folder.splits)
    # Without `paths`, whose hash leaves out the folders and so the classes: a small source hashes what it holds.
    digest = None if folder.nbytes <= IN_DRIVER_BYTES else folder.digest
    return Source(uri, "images", parts, nbytes=folder.nbytes, value=folder, digest=digest)


def _function(uri: str) -> Source:
    path, _, query = uri.partition("?")
    function = find(path, "data.source")
    try:
        value = function(**{name: _literal(text) for name, text in parse_qsl(query)})
    except Exception as error:
        raise UserError(
            f"data.source='{uri}' raised {type(error).__name__}: {error}: mend the function "
            "(SHOAL_TRACEBACK=1 shows where)"
        ) from error
    return of_value(uri, value)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _in_memory(uri: str, block: Block) -> Source:
    nbytes = sum(column.nbytes for column in block.values())
    return Source(uri, "memory", (Part(lambda: iter([block])),), nbytes=min(nbytes, IN_DRIVER_BYTES))


def _indexed(uri: str, dataset: Any) -> Source:
    """A map-style torch Dataset: its items are what the model takes."""
    if len(dataset) == 0:
        raise DataError(f"data.source='{uri}' is empty: it has 0 rows; name one that has some")
    size = sum(column.nbytes for column in item_block([dataset[0]]).values())
    step = max(1, (32 << 20) // max(size, 1))

    def read() -> Iterator[Block]:
        for first in range(0, len(dataset), step):
            yield item_block([dataset[row] for row in range(first, min(first + step, len(dataset)))])

    return Source(uri, "indexed", (Part(read),), nbytes=size * len(dataset), is_ready=True, value=dataset)


def _ray_blocks(dataset: Any) -> Iterator[Block]:
    for table in dataset.iter_batches(batch_size=1 << 16, batch_format="pyarrow"):
        yield table_to_block(table)


def _hash_files(hasher: Any, paths: tuple[str, ...]) -> None:
    is_small = sum(_size(path) for path in paths) <= HASHED_BYTES
    for path in paths:
        filesystem, inner = filesystem_of(path)
        info = filesystem.get_file_info(inner)
        hasher.update(f"{os.path.basename(path)} {info.size}".encode())
        if is_small:
            with filesystem.open_input_stream(inner) as stream:
                while chunk := stream.read(1 << 20):
                    hasher.update(chunk)
        else:
            hasher.update(str(info.mtime_ns).encode())


def _hash_block(hasher: Any, split: str | None, block: Block) -> None:
    for name, column in block.items():
        hasher.update(f"{split} {name} {column.dtype} {column.shape}".encode())
        if column.dtype == object:
            hasher.update("\x1f".join(map(str, column)).encode())
        else:
            hasher.update(np.ascontiguousarray(column).tobytes())
