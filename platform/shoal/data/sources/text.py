"""Reads `text:PATH`: text files, or the source of Python's standard library, as documents of a language model."""

import codecs
import glob
import os
import sysconfig
from collections.abc import Iterator

from shoal.data.sampler import VALIDATION
from shoal.data.sources.base import Source, filesystem_of
from shoal.data.sources.corpus import Corpus, Documents
from shoal.data.sources.files import given_splits, is_folder, list_files
from shoal.data.text import TextOptions
from shoal.errors import DataError

STDLIB = "stdlib"  # a location: the source of Python's standard library
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
CHUNK_BYTES = 1 << 20  # of a file read at a time


def open_text(uri: str, location: str, data: TextOptions, seed: int) -> Source:
    """Make rows for a language model from files: a file, a glob, a directory, or `stdlib`.

    `stdlib` is the source of Python's standard library. Named files must be UTF-8; in a directory, files that are
    hidden or not text (not UTF-8, or with NUL bytes) are left out. A directory may state splits: `given_splits`.

    Returns:
        A source with one part per split, blocks {"tokens": [rows, context + 1]}, and its tokenizer.

    Raises:
        DataError: there is no text, or none to train on, or a named file is not UTF-8.
    """
    is_library = location == STDLIB
    listed = standard_library() if is_library else list_files(uri, "text", location)[0]
    paths = _text_files(uri, listed, skips=is_library or is_folder(location))
    parts = {None: paths} if is_library else given_splits(uri, location, paths)

    def read() -> Documents:
        for split, files in parts.items():
            yield split, (read_chunks(uri, path) for path in files)

    return Corpus(uri, read, data, seed, VALIDATION in parts).source()


def standard_library() -> tuple[str, ...]:
    """List the standard library's own modules, sorted by their path within it."""
    root = sysconfig.get_path("stdlib")
    found = glob.glob("**/*.py", root_dir=root, recursive=True)
    own = (path for path in found if not NOT_THE_LIBRARY & set(path.split(os.sep)))
    return tuple(os.path.join(root, path) for path in sorted(own))


def _text_files(uri: str, paths: tuple[str, ...], skips: bool) -> tuple[str, ...]:
    """Return the files that hold text; others are skipped or refused, empty ones skipped."""
    kept = []
    for path in paths:
        try:
            # Read to the end: even the last byte may be invalid UTF-8.
            if sum(map(len, read_chunks(uri, path))):
                kept.append(path)
        except DataError:
            if not skips:
                raise
        except OSError as error:
            raise DataError(
                f"data.source='{uri}': '{path}' cannot be read ({error}): make it readable"
            ) from None
    if not kept:
        raise DataError(
            f"data.source='{uri}': none of its {len(paths)} files is text (UTF-8, without NUL bytes): "
            "name a folder with text in it, or convert the files"
        )
    return tuple(kept)


def read_chunks(uri: str, path: str) -> Iterator[str]:
    """Read the text of a file, `CHUNK_BYTES` at a time.

    Raises:
        DataError: it is not text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    filesystem, inner = filesystem_of(path)
    offset = 0  # of the first byte that is not decoded yet
    with filesystem.open_input_stream(inner, compression=None) as stream:
        is_last = False
        while not is_last:
            chunk = bytes(stream.read(CHUNK_BYTES))
            is_last = not chunk
            held = len(decoder.getstate()[0])
            if b"\0" in chunk:
                raise _not_text(uri, path, f"holds a NUL byte at byte {offset + held + chunk.index(0)}")
            try:
                yield decoder.decode(chunk, is_last)
            except UnicodeDecodeError as error:
                raise _not_text(uri, path, f"is not UTF-8 at byte {offset + error.start}") from None
            offset += held + len(chunk) - len(decoder.getstate()[0])


def _not_text(uri: str, path: str, problem: str) -> DataError:
    return DataError(
        f"data.source='{uri}': '{path}' {problem}: text must be UTF-8; convert it, e.g. with "
        "iconv -f latin1 -t utf-8, or name a folder, of which such files are left out"
    )
