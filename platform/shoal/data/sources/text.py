"""Reads `text:PATH`: text files, or the source of Python's standard library, as documents of a language model."""

import codecs
import glob
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import replace

from shoal.data.sampler import VALIDATION
from shoal.data.sources.base import Source
from shoal.data.sources.corpus import Corpus, Documents
from shoal.data.sources.encoding import find_encoding
from shoal.data.sources.files import given_splits, is_folder, list_files
from shoal.data.sources.opening import UTF8, check_encoding, open_plain
from shoal.data.text import TextOptions
from shoal.errors import DataError

STDLIB = "stdlib"  # a location: the source of Python's standard library
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
CHUNK_BYTES = 1 << 20  # of a file read at a time
MARKS = {  # that of UTF-32 begins as that of UTF-16 does
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
MARK_BYTES = 4


def open_text(uri: str, location: str, data: TextOptions, seed: int, encoding: str | None = None) -> Source:
    """Make rows for a language model from files: a file, a glob, a directory, or `stdlib`.

    `stdlib` is the source of Python's standard library. In a directory, files that are hidden or not text (of another
    encoding, or with NUL bytes) are left out, which a note says. A directory may state splits: `given_splits`.

    Args:
        uri: as the user wrote it.
        location: of the files.
        data: of the tokenizer and the rows.
        seed: of the splits.
        encoding: of the files; None: UTF-8, or UTF-16 and UTF-32 where a file begins with their mark.

    Returns:
        A source with one part per split, blocks {"tokens": [rows, context + 1]}, and its tokenizer.

    Raises:
        DataError: there is no text, or none to train on, or a named file is of another encoding.
    """
    check_encoding(encoding)
    is_library = location == STDLIB
    listed = standard_library() if is_library else list_files(uri, "text", location)[0]
    paths, notes = _text_files(uri, listed, is_library or is_folder(location), encoding)
    parts = {None: paths} if is_library else given_splits(uri, location, paths)

    def read() -> Documents:
        for split, files in parts.items():
            yield split, (read_chunks(uri, path, encoding) for path in files)

    source = Corpus(uri, read, data, seed, VALIDATION in parts).source()
    return replace(source, notes=() if is_library else notes)


def standard_library() -> tuple[str, ...]:
    """List the standard library's own modules, sorted by their path within it."""
    root = sysconfig.get_path("stdlib")
    found = glob.glob("**/*.py", root_dir=root, recursive=True)
    own = (path for path in found if not NOT_THE_LIBRARY & set(path.split(os.sep)))
    return tuple(os.path.join(root, path) for path in sorted(own))


def _text_files(
    uri: str, paths: tuple[str, ...], skips: bool, encoding: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files that hold text, and notes; others are skipped or refused, empty ones skipped."""
    kept, left_out = [], []
    for path in paths:
        try:
            # Read to the end: even the last byte may be invalid.
            if sum(map(len, read_chunks(uri, path, encoding))):
                kept.append(path)
        except DataError as error:
            if not skips:
                raise
            left_out.append(str(error))
        except OSError as error:
            raise DataError(
                f"data.source='{uri}': '{path}' cannot be read ({error}): make it readable"
            ) from None
    if not kept:
        reason = f" ({left_out[0]})" if left_out else ""
        raise DataError(
            f"data.source='{uri}': none of its {len(paths)} files is text (UTF-8, without NUL bytes){reason}: "
            "name a folder with text in it, set data.encoding, or convert the files"
        )
    if not left_out:
        return tuple(kept), ()
    return tuple(kept), (f"{len(left_out)} of {len(paths)} files are left out, the first as {left_out[0]}",)


def read_chunks(uri: str, path: str, encoding: str | None = None) -> Iterator[str]:
    """Read the text of a file, `CHUNK_BYTES` at a time.

    Args:
        uri: of the source, for messages.
        path: of the file.
        encoding: a name that Python knows; None: as `open_text`.

    Raises:
        DataError: it is not text, or of another encoding.
    """
    offset = 0  # of the first byte that is not decoded yet
    with open_plain(path) as stream:
        chunk = bytes(stream.read(max(CHUNK_BYTES, MARK_BYTES)))
        marked = _marked(chunk)
        name = encoding or marked or UTF8
        decoder = codecs.getincrementaldecoder(name)()
        has_nul = _is_wide(name)
        while True:
            held = len(decoder.getstate()[0])
            if not has_nul and b"\0" in chunk:
                place = offset + held + chunk.index(0)
                raise _not_text(uri, path, f"holds a NUL byte at byte {place}", chunk)
            try:
                yield decoder.decode(chunk, not chunk)
            except UnicodeDecodeError as error:
                problem = f"is not {'UTF-8' if name == UTF8 else name} at byte {offset + error.start}"
                if marked and not encoding:
                    problem = f"is not UTF-8 at byte 0, whose mark is that of {name}, and {problem}"
                raise _not_text(uri, path, problem, chunk) from None
            if not chunk:
                return
            offset += held + len(chunk) - len(decoder.getstate()[0])
            chunk = bytes(stream.read(CHUNK_BYTES))


def _marked(head: bytes) -> str | None:
    """Return the encoding that a file's first bytes mark, apart from UTF-8; None: they mark none."""
    return next((name for name, marks in MARKS.items() if head.startswith(marks)), None)


def _is_wide(encoding: str) -> bool:
    """Whether characters of an encoding have NUL bytes."""
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def _not_text(uri: str, path: str, problem: str, chunk: bytes) -> DataError:
    found = find_encoding([chunk])
    looks = "" if found in (None, UTF8) else f" (it looks like {found})"
    example = "latin-1" if found in (None, UTF8) else found
    return DataError(
        f"data.source='{uri}': '{path}' {problem}{looks}: text must be UTF-8, or of data.encoding, e.g. "
        f"data.encoding={example}; convert it, e.g. with iconv -f {example} -t utf-8, or name a folder, of which such "
        "files are left out"
    )
