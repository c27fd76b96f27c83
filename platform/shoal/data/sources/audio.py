"""Lists the recordings of `audio:PATH`: tables, manifests and trees, as corpora of speech are published.

A folder with a .csv or .tsv of paths and texts (as Common Voice's, or LJSpeech's without a header); manifests of NeMo
(.jsonl, .json) and cuts of Lhotse (.jsonl, .jsonl.gz); LibriSpeech's tree; data folders of Kaldi (wav.scp and text); a
.txt beside each recording. No recording is opened.
"""

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shoal.data.read_options import ReadOptions
from shoal.data.sampler import split_named
from shoal.data.sources.base import filesystem_of
from shoal.data.sources.encoded_audio import SUFFIXES, Encoded
from shoal.data.sources.files import given_splits, list_files
from shoal.data.sources.recording_files import ListedFiles
from shoal.data.sources.recordings import (
    PATHS,
    SPEAKERS,
    SPLIT_COLUMNS,
    TEXTS,
    Recording,
    clean,
    find_column,
    text_names,
)
from shoal.errors import DataError

TABLES, MANIFESTS = (".csv", ".tsv"), (".jsonl", ".jsonl.gz", ".json")
TRANSCRIPTS, SCRIPT = ".trans.txt", "wav.scp"  # of LibriSpeech, and of Kaldi
DELIMITERS = (",", "\t", "|", ";")
UNQUOTED = ("\t", "|")  # delimiters of Common Voice and LJSpeech, whose sentences hold quotation marks

# From a source's URI, a file and its split to the recordings that it lists.
Lister = Callable[[str, str, str | None], Iterator[Recording]]


def list_recordings(uri: str, location: str, label: str, options: ReadOptions) -> tuple[Recording, ...]:
    """List the recordings of a path with their texts and splits.

    Args:
        uri: as the user wrote it.
        location: a folder, a table or a manifest, on a disk or in an object store.
        label: the column of the texts, if a table has one of that name.
        options: how tables are read.

    Raises:
        DataError: there is no list of recordings, or one that cannot be read.
    """
    paths, _ = list_files(uri, "audio", location)
    names = {path: os.path.basename(path) for path in paths}
    listers: tuple[tuple[Callable[[str], bool], Lister], ...] = (
        (lambda name: name == SCRIPT, _kaldi),
        (lambda name: name.endswith(TRANSCRIPTS), _librispeech),
        (lambda name: name.endswith(TABLES), partial(_table, label=label, options=options)),
        (lambda name: name.endswith(MANIFESTS), _manifest),
    )
    for is_list, lister in listers:
        lists = tuple(path for path in paths if is_list(names[path].lower()))
        if lists:
            split_of = _splits(uri, location, lists)
            found = tuple(
                one for path in lists if path in split_of for one in lister(uri, path, split_of[path])
            )
            if not found:
                raise DataError(f"data.source='{uri}': '{lists[0]}' lists no recordings: name one that does")
            return found
    return _with_texts_beside(uri, location, paths)


def _with_texts_beside(uri: str, location: str, paths: tuple[str, ...]) -> tuple[Recording, ...]:
    """List the recordings that no list names, each with the text of the .txt beside it."""
    recordings = tuple(path for path in paths if path.lower().endswith(SUFFIXES))
    texts = {_without_ending(path): path for path in paths if path.lower().endswith(".txt")}
    if not texts.keys() & set(map(_without_ending, recordings)):
        raise DataError(
            f"data.source='{uri}' has {len(recordings)} recordings and no list of their texts: give a .csv or .tsv "
            "with the columns path and text, a .jsonl manifest, wav.scp and text, LibriSpeech's tree, or beside each "
            "recording a .txt of the same name"
        )
    found = []
    for path, split in _splits(uri, location, recordings).items():
        text = texts.get(_without_ending(path))
        said = clean(_text_of(uri, text) if text else None)
        found.append(Recording(Encoded(os.path.basename(path), path), said, split))
    return tuple(found)


def _without_ending(path: str) -> str:
    return os.path.splitext(path)[0]


def _splits(uri: str, location: str, lists: tuple[str, ...]) -> dict[str, str | None]:
    """Return the split of each list; lists beside those named after splits, as Common Voice's others, are left out."""
    stems = {path: _stem(path) for path in lists}
    named = {path: split for path, stem in stems.items() if (split := split_named(stem)) is not None}
    if len(set(named.values())) > 1 and len({os.path.dirname(path) for path in lists}) == 1:
        return dict(named)
    return {path: split for split, some in given_splits(uri, location, lists).items() for path in some}


def _stem(path: str) -> str:
    name = os.path.basename(path).lower().removesuffix(".gz")
    return name.rpartition(".")[0].removesuffix("_manifest").removeprefix("cuts_")


def _text_of(uri: str, path: str, encoding: str | None = None) -> str:
    """Return the text of a file."""
    filesystem, inner = filesystem_of(path)
    try:
        with filesystem.open_input_stream(inner, compression=None) as stream:
            data = bytes(stream.read())
        return (gzip.decompress(data) if path.endswith(".gz") else data).decode(encoding or "utf-8-sig")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"data.source='{uri}': '{path}' cannot be read ({error}): it must be text in UTF-8, or of data.encoding"
        ) from None


class _Layout(NamedTuple):
    """How a table is written.

    Attributes:
        has_header: whether its first line names the columns.
    """

    delimiter: str
    columns: list[str]
    has_header: bool


def _quoting(delimiter: str) -> Literal[0, 3]:
    return csv.QUOTE_NONE if delimiter in UNQUOTED else csv.QUOTE_MINIMAL


def _layout(text: str, delimiters: tuple[str, ...], files: ListedFiles) -> _Layout:
    """Return the layout of a table: the first line names the paths' column, or begins with a recording."""
    first = next(filter(str.strip, text.splitlines()), "")
    found = []
    for delimiter in delimiters:
        cells = next(csv.reader([first], delimiter=delimiter, quoting=_quoting(delimiter)), [])
        found.append(_Layout(delimiter, cells, has_header=True))
        if any(cell.lower() in PATHS for cell in cells):
            return found[-1]
        if len(cells) > 1 and files.is_there(cells[0]):
            between = [f"column {number}" for number in range(2, len(cells))]
            return _Layout(delimiter, [PATHS[0], *between, TEXTS[0]], has_header=False)
    return found[0]


def _table(uri: str, path: str, split: str | None, label: str, options: ReadOptions) -> Iterator[Recording]:
    """Read a table of paths and texts; a column `split` divides it, a column `speaker` names who speaks."""
    text, files = _text_of(uri, path, options.encoding), ListedFiles(path)
    usual = "\t" if path.lower().endswith(".tsv") else ","
    likely = (options.delimiter,) if options.delimiter else tuple(dict.fromkeys((usual, *DELIMITERS)))
    layout = _layout(text, likely, files)
    columns = layout.columns
    file = find_column(uri, PATHS, columns, "paths", "name one of them path")
    texts = find_column(uri, text_names(label), columns, "texts", "set data.label")
    lower = {column.lower(): column for column in columns}
    who, divided = (
        next((lower[name] for name in some if name in lower), None) for some in (SPEAKERS, SPLIT_COLUMNS)
    )
    rows = csv.DictReader(
        io.StringIO(text, newline=""),
        None if layout.has_header else columns,
        delimiter=layout.delimiter,
        quoting=_quoting(layout.delimiter),
        restval="",
    )
    for row in rows:
        stated = split if split is not None or divided is None else split_named(row[divided])
        yield Recording(
            Encoded(row[file], files.place(row[file])), clean(row[texts]), stated, row[who] if who else None
        )


def _manifest(uri: str, path: str, split: str | None) -> Iterator[Recording]:
    """Read lines of JSON: of NeMo's manifests, or cuts of Lhotse."""
    text, files = _text_of(uri, path), ListedFiles(path)
    for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
        try:
            item = json.loads(line)
            yield _cut(item, files, split) if "recording" in item else _item(item, files, split)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"data.source='{uri}': line {number} of '{path}' is no recording ({type(error).__name__}: {error}): a "
                'line is {"audio_filepath": ..., "text": ...}, or a cut of Lhotse with one supervision'
            ) from None


def _item(item: Mapping[str, Any], files: ListedFiles, split: str | None) -> Recording:
    duration = item.get("duration") if "offset" in item else None
    speaker = item.get("speaker")
    name = str(item["audio_filepath"])
    return Recording(
        Encoded(name, files.place(name), float(item.get("offset", 0.0)), duration),
        clean(item.get("text")),
        split,
        None if speaker is None else str(speaker),
    )


def _cut(item: Mapping[str, Any], files: ListedFiles, split: str | None) -> Recording:
    [recorded] = item["recording"]["sources"]
    if recorded["type"] != "file":
        raise ValueError(f"its source is a {recorded['type']}")
    [supervision] = item["supervisions"]
    return Recording(
        Encoded(
            str(item["id"]),
            files.place(str(recorded["source"])),
            float(item["start"]),
            float(item["duration"]),
        ),
        clean(supervision.get("text")),
        split,
        supervision.get("speaker"),
    )


def _librispeech(uri: str, path: str, split: str | None) -> Iterator[Recording]:
    """Read SPEAKER-CHAPTER.trans.txt, beside which each recording lies under its own name."""
    files = ListedFiles(path)
    for name, text in _named_lines(uri, path):
        yield Recording(
            Encoded(f"{name}.flac", files.place(f"{name}.flac")), text, split, name.partition("-")[0]
        )


def _kaldi(uri: str, path: str, split: str | None) -> Iterator[Recording]:
    """Read a data folder of Kaldi: wav.scp, text, and where they are there segments and utt2spk."""
    folder, files = os.path.dirname(path), ListedFiles(path)
    listed = dict(_named_lines(uri, path))
    piped = next((name for name, place in listed.items() if place.endswith("|")), None)
    if piped is not None:
        raise DataError(
            f"data.source='{uri}': '{piped}' of '{path}' is a command, and none is run: name files of recordings"
        )
    texts = dict(_named_lines(uri, f"{folder}/text"))
    speakers = dict(_named_lines(uri, f"{folder}/utt2spk")) if Path(f"{folder}/utt2spk").is_file() else {}
    if not Path(f"{folder}/segments").is_file():
        for name, place in listed.items():
            yield Recording(Encoded(name, files.place(place)), texts.get(name, ""), split, speakers.get(name))
        return
    for name, where in _named_lines(uri, f"{folder}/segments"):
        recording, start, end = where.split()
        sound = Encoded(name, files.place(listed[recording]), float(start), float(end) - float(start))
        yield Recording(sound, texts.get(name, ""), split, speakers.get(name))


def _named_lines(uri: str, path: str) -> Iterator[tuple[str, str]]:
    """Yield the first word of each line, and the rest."""
    for line in filter(str.strip, _text_of(uri, path).splitlines()):
        name, *rest = line.split(maxsplit=1)
        yield name, clean(rest[0] if rest else "")
