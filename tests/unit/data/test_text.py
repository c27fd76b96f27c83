import functools
import gzip
import json
import os
import shutil
import sysconfig

import numpy as np
import pandas as pd
import pytest

from shoal.data import text as text_module
from shoal.data.dataset_info import blocks_with_splits, inspect_source
from shoal.data.sampler import split_rows
from shoal.data.sources import text
from shoal.data.sources.function import source_from_value
from shoal.data.sources.open import is_function, open_source
from shoal.data.sources.text import open_text
from shoal.data.sources.text_column import encode_column, open_text_column
from shoal.data.text import PIECE_CHARS, TextOptions, grouped, pack, packed
from shoal.data.tokenizer import END, PAD, BPETokenizer, ByteTokenizer, tokenizer_from_json
from shoal.errors import ConfigError, DataError

EVERYTHING = TextOptions(context=8, validation_fraction=0, test_fraction=0)
HALVES = TextOptions(context=32, validation_fraction=0.25, test_fraction=0.25)


def pieces(texts):
    """The pieces of documents, in order."""
    return [piece for group in grouped([text] for text in texts) for piece, _ in group]


def opened(location, options=EVERYTHING, seed=0):
    return open_text(f"text:{location}", location, options, seed)


def problem(call, *arguments, kind=DataError):
    with pytest.raises(kind) as caught:
        call(*arguments)
    return str(caught.value)


def rows_of(source):
    """All rows of each split, over its blocks."""
    found = {}
    for split, block in source.blocks():
        assert list(block) == ["tokens"]
        found.setdefault(split, []).append(block["tokens"])
    return {split: np.concatenate(blocks) for split, blocks in found.items()}


def stream(rows):
    """The tokens that rows were packed from."""
    assert (rows[1:, 0] == rows[:-1, -1]).all()
    tokens = np.concatenate([rows[:1, 0], rows[:, 1:].reshape(-1)])
    return tokens[: np.flatnonzero(tokens != PAD)[-1] + 1]


def documents(source, split="train"):
    """The texts of a split, separated by their END."""
    tokenizer = tokenizer_from_json(source.tokenizer)
    tokens = stream(rows_of(source)[split])
    assert tokens[-1] == END
    return [tokenizer.decode(part) for part in np.split(tokens, np.flatnonzero(tokens == END) + 1)[:-1]]


def lines(count, first=0):
    return "".join(f"{number}: the cat sat on the mat\n" for number in range(first, first + count))


# Pieces.


@pytest.mark.parametrize(
    "document",
    [
        "",
        "\n",
        "short",
        lines(5_000),
        lines(5_000).replace("\n", "\r\n"),
        "x" * (3 * PIECE_CHARS + 1),
        "x" * PIECE_CHARS,
        "日" * (PIECE_CHARS + 1) + "\n",
        "\n" * (2 * PIECE_CHARS),
        "x" * (PIECE_CHARS - 1) + "\n" + "y",
    ],
    ids=range(10),
)
def test_the_pieces_of_a_document_are_the_document_and_none_is_empty_or_too_long(document):
    cut = pieces([document])
    assert "".join(cut) == document
    assert all(0 < len(piece) <= PIECE_CHARS for piece in cut)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_pieces_end_with_their_lines_and_are_as_long_as_lines_let_them(end):
    document = lines(5_000).replace("\n", end)
    cut = pieces([document])
    assert all(piece.endswith(end) for piece in cut)
    assert min(map(len, cut[:-1])) > PIECE_CHARS - 40


def test_a_line_longer_than_a_piece_is_cut_where_the_piece_is_full():
    assert list(map(len, pieces(["x" * (2 * PIECE_CHARS + 5)]))) == [PIECE_CHARS, PIECE_CHARS, 5]
    long = "a\n" + "x" * PIECE_CHARS + "\nb"
    assert list(map(len, pieces([long]))) == [2, PIECE_CHARS, 2]


def test_no_piece_holds_text_of_two_documents():
    assert pieces(["a", "", "b\nc"]) == ["a", "b\nc"]


# Packing.


@pytest.mark.parametrize("length", [1, 2, 4, 5, 6, 8, 9, 10, 100])
@pytest.mark.parametrize("context", [1, 4, 7])
def test_packed_rows_hold_every_token_and_predict_all_but_the_first_once(length, context):
    tokens = np.arange(1, length + 1, dtype=np.int32)
    rows = pack(np.array_split(tokens, 3), context, 259)
    assert rows.shape == (max(1, -(-(length - 1) // context)), context + 1)
    np.testing.assert_array_equal(stream(rows), tokens)
    targets = rows[:, 1:][rows[:, 1:] != PAD]
    np.testing.assert_array_equal(targets, tokens[1:])


def test_packing_is_as_written_out_by_hand():
    rows = pack([np.array([5, 6, 7]), np.array([8, 9, 10])], 2, 259)
    assert rows.tolist() == [[5, 6, 7], [7, 8, 9], [9, 10, PAD]]


def test_nothing_packs_to_no_rows():
    assert pack([], 4, 259).shape == (0, 5)
    assert pack([np.empty(0, np.int32)], 4, 259).shape == (0, 5)


def test_tokens_take_two_bytes_unless_the_vocabulary_needs_four():
    tokens = [np.array([5, 65_534])]
    assert pack(tokens, 1, 65_535).dtype == np.uint16
    assert pack([np.array([5, 70_000])], 1, 70_001).tolist() == [[5, 70_000]]
    assert pack(tokens, 1, 65_536).dtype == np.int32


@pytest.mark.parametrize("block_bytes", [1, 18, 100, 1 << 20])
@pytest.mark.parametrize("group_chars", [1, 1000])
def test_rows_are_the_same_however_they_are_blocked_and_grouped(here, monkeypatch, block_bytes, group_chars):
    here("d/a.txt", lines(20))
    here("d/b.txt", "no more than this")
    whole = rows_of(opened("d"))["train"]
    monkeypatch.setattr(text_module, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(text_module, "GROUP_CHARS", group_chars)
    blocks = [block["tokens"] for _, block in opened("d").blocks()]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert all(block.nbytes <= max(block_bytes, 18) for block in blocks)


@pytest.mark.parametrize("length", range(1, 30))
def test_a_stream_that_ends_with_a_block_leaves_no_row_behind(monkeypatch, length):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", 30)  # two rows of 4 + 1 tokens of two bytes, and a rest
    tokens = np.arange(1, length + 1)
    for parts in (1, 4, length):
        blocks = list(packed(np.array_split(tokens, parts), 4, 259))
        np.testing.assert_array_equal(np.concatenate(blocks), pack([tokens], 4, 259))


# Files.


def test_a_file_is_one_document_kept_to_the_byte(here):
    content = "\ufefffirst\r\nsecond\rthird\n\n  é日本\U0001f600 <end>"
    here("a.txt", content)
    assert documents(opened("a.txt")) == [content]


@pytest.mark.parametrize("chunk_bytes", [1, 3, 1000])
def test_a_file_is_the_same_pieces_in_whatever_chunks_it_is_read(here, monkeypatch, chunk_bytes):
    content = ("é日本\U0001f600\r\n" + "x" * 50 + "\n") * 20 + "y" * 700
    here("a.txt", content)
    monkeypatch.setattr(text_module, "PIECE_CHARS", 100)
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk_bytes)
    (group,) = grouped([text.read_chunks("text:a.txt", "a.txt")])
    assert [piece for piece, _ in group] == pieces([content])
    assert [ends for _, ends in group] == [False] * (len(group) - 1) + [True]


def test_documents_follow_each_other_by_their_relative_path_and_empty_ones_are_skipped(here):
    here("d/b.txt", "b")
    here("d/a/z.md", "z")
    here("d/__init__.py", "i")
    here("d/empty.txt", "")
    here("d/a.txt", "a")
    assert documents(opened("d")) == ["i", "a", "z", "b"]


def test_of_a_directory_what_is_hidden_or_binary_or_not_utf8_is_left_out(here):
    here("d/a.txt", "a")
    here("d/.hidden", "hidden")
    here("d/.git/config", "hidden")
    here("d/image.png", b"\x89PNG\r\n\x1a\n\0\0")
    here("d/nul.txt", b"ascii\0and nul")
    here("d/latin.txt", "é".encode("latin-1"))
    here("d/packed.txt.gz", gzip.compress(b"packed"))
    here("d/broken.gz", b"\x1f\x8b\xff")
    assert documents(opened("d")) == ["a"]


def test_a_glob_reads_the_files_it_matches(here):
    for name in ("2.txt", "1.txt", "3.md"):
        here(name, name)
    assert documents(opened("*.txt")) == ["1.txt", "2.txt"]


def test_the_order_does_not_depend_on_the_order_in_which_files_were_made(here):
    names = ["b", "a", "c/d", "c/a", "B"]
    for name in names:
        here(f"one/{name}", name)
    for name in reversed(names):
        here(f"two/{name}", name)
    assert documents(opened("one")) == documents(opened("two"))
    assert opened("one").fingerprint == opened("two").fingerprint


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"abc\xe9def", "is not UTF-8 at byte 3"),
        (b"ab\0c", "holds a NUL byte at byte 2"),
        (b"\xff\xfe\xfd", "is not UTF-8 at byte 0"),
        ("aé\U0001f600".encode()[:-1], "is not UTF-8 at byte 3"),
    ],
)
@pytest.mark.parametrize("location", ["a.txt", "*.txt"])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 1 << 20])
def test_a_named_file_that_is_no_utf8_is_refused_with_the_byte_and_the_remedy(
    here, monkeypatch, content, place, location, chunk_bytes
):
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk_bytes)
    here("a.txt", content)
    message = problem(opened, location)
    assert all(part in message for part in ("a.txt'", place, "convert it", "iconv")), message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("chunk_bytes", [1, 5, 1 << 20])
def test_a_file_that_begins_with_the_mark_of_its_encoding_is_read_by_it(
    here, monkeypatch, encoding, chunk_bytes
):
    monkeypatch.setattr(text, "CHUNK_BYTES", chunk_bytes)
    here("a.txt", "né 日本\n".encode(encoding))
    assert documents(opened("a.txt")) == ["né 日本\n"]


@pytest.mark.parametrize("encoding", ["latin-1", "gb18030", "utf-16-le", "cp1251"])
def test_files_are_read_by_the_encoding_that_is_given(here, encoding):
    content = {"latin-1": "né", "cp1251": "привет"}.get(encoding, "n 日本")
    here("d/a.txt", content.encode(encoding))
    source = open_text("text:d", "d", EVERYTHING, 0, encoding)
    assert documents(source) == [content]
    assert source.notes == ()


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        ("caf\xe9, d\xe9j\xe0 vu, s\xed ".encode("latin-1"), "cp1252"),
        ("数据集的文本文件，每行一个样本。".encode("gb18030"), "gb18030"),
        ("plain words".encode("utf-16-le"), "utf-16-le"),
    ],
)
def test_a_file_of_another_encoding_is_refused_with_the_one_it_looks_like(here, content, looks):
    here("a.txt", content)
    message = problem(opened, "a.txt")
    assert all(piece in message for piece in (f"it looks like {looks}", f"data.encoding={looks}")), message
    here("d/good.txt", "good")
    here("d/odd.txt", content)
    [note] = opened("d").notes
    assert "1 of 2 files are left out" in note
    assert f"data.encoding={looks}" in note


def test_an_unknown_encoding_is_refused(here):
    here("a.txt", "a")
    with pytest.raises(DataError, match=r"data\.encoding='latin-99'"):
        open_text("text:a.txt", "a.txt", EVERYTHING, 0, "latin-99")


def test_a_directory_without_text_is_refused(here):
    here("d/a.png", b"\x89PNG\0")
    here("d/b.png", b"\0")
    message = problem(opened, "d")
    assert "data.source='text:d': none of its 2 files is text" in message
    os.mkdir("empty")
    assert "no file 'empty'" in problem(opened, "empty")
    here("e/a.txt", "")
    assert "is empty (0 bytes)" in problem(opened, "e")


def test_a_file_that_is_not_there_is_refused(here):
    assert "no file 'a.txt', seen from" in problem(opened, "a.txt")


def test_the_scheme_is_a_known_one_and_no_module_of_a_user():
    assert not is_function("text:stdlib")
    assert "text:" in problem(open_source, "texts:a.txt")


# The standard library.


def test_the_standard_library_is_its_own_modules_in_order():
    root = sysconfig.get_path("stdlib")
    names = [os.path.relpath(path, root) for path in text.standard_library()]
    assert names == sorted(names)
    assert {"os.py", "json/decoder.py", "unittest/mock.py", "concurrent/futures/thread.py"} <= set(names)
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3"}
    assert not [name for name in names if left_out & set(name.split(os.sep))]
    assert all(name.endswith(".py") for name in names)


def test_text_of_the_standard_library_is_read_split_and_packed_completely(monkeypatch):
    few = text.standard_library()[:60]
    monkeypatch.setattr(text, "standard_library", lambda: few)
    source = opened("stdlib", TextOptions(context=64))
    contents = [open(path, "rb").read().decode() for path in few]
    contents = [content for content in contents if content]
    tokens = {split: stream(rows) for split, rows in rows_of(source).items()}
    assert set(tokens) == {"train", "validation", "test"}
    assert sum(map(len, tokens.values())) == sum(len(content.encode()) for content in contents) + len(
        contents
    )
    assert sum((part == END).sum() for part in tokens.values()) == len(contents)


# Splits.


def test_a_split_holds_the_pieces_that_their_numbers_assign_to_it_in_order(here):
    texts = [lines(3_000), lines(10), lines(5_000, first=7)]
    for number, content in enumerate(texts):
        here(f"d/{number}.txt", content)
    cut = [pieces([content]) for content in texts]
    numbered = [(piece, piece is part[-1]) for part in cut for piece in part]
    split = split_rows(3, np.arange(len(numbered)), 0.25, 0.25)
    found = rows_of(opened("d", HALVES, seed=3))
    assert set(found) == {"train", "validation", "test"}
    for number, name in enumerate(("train", "validation", "test")):
        expected = [
            np.append(ByteTokenizer().encode(piece), [END] * ends)
            for (piece, ends), mine in zip(numbered, split, strict=True)
            if mine == number
        ]
        np.testing.assert_array_equal(stream(found[name]), np.concatenate(expected))


def test_splits_stay_when_the_data_grows_at_its_end(here):
    here("d/a.txt", lines(20_000))
    before = {split: stream(rows) for split, rows in rows_of(opened("d", HALVES)).items()}
    here("d/a.txt", lines(24_000))
    here("d/b.txt", lines(3_000))
    after = {split: stream(rows) for split, rows in rows_of(opened("d", HALVES)).items()}
    for split, tokens in before.items():
        kept = len(tokens) - len(pieces([lines(20_000)])[-1]) - 1  # the last piece may have been cut anew
        np.testing.assert_array_equal(after[split][:kept], tokens[:kept])
        assert kept > 0


def test_a_split_without_a_piece_is_left_out(here):
    here("a.txt", "one piece")
    assert [part.split for part in opened("a.txt").parts] == ["train"]


def test_text_of_which_nothing_is_left_to_train_on_is_refused(here):
    here("a.txt", "one piece")
    options = TextOptions(context=8, validation_fraction=0.999, test_fraction=0)
    message = problem(opened, "a.txt", options)
    assert "9 bytes of text, and none is left to train on" in message
    assert "lower data.validation_fraction" in message


# The source.


def test_the_source_is_ready_small_and_about_as_large_as_it_says(here):
    here("a.txt", lines(5_000))
    for name in ("byte", "bpe:400"):
        source = opened("a.txt", TextOptions(context=32, tokenizer=name))
        size = sum(rows.nbytes for rows in rows_of(source).values())
        assert source.is_ready
        assert source.nbytes == pytest.approx(size, rel=0.02)


def test_bpe_is_fitted_on_the_training_pieces_alone(here):
    content = lines(8_000)
    here("a.txt", content)
    cut = pieces([content])
    split = split_rows(0, np.arange(len(cut)), 0.25, 0.25)
    training = [piece for piece, number in zip(cut, split, strict=True) if number == 0]
    options = TextOptions(32, "bpe:400", 0.25, 0.25)
    assert 0 < len(training) < len(cut)
    assert opened("a.txt", options).tokenizer == BPETokenizer.fit(training, 400).to_json()
    assert opened("a.txt", options).tokenizer != BPETokenizer.fit(cut, 400).to_json()


def test_bpe_tokens_of_the_splits_decode_to_their_pieces(here):
    here("a.txt", lines(100) + "é日本\r\n")
    options = TextOptions(16, "bpe:350", 0, 0)
    assert documents(opened("a.txt", options)) == [lines(100) + "é日本\r\n"]


def test_a_given_tokenizer_is_used_as_it_is_even_where_nothing_is_left_to_train_on(here):
    given = BPETokenizer.fit([lines(100)], 300).to_json()
    here("a.txt", "something else")
    options = TextOptions(8, "byte", 0.999, 0, given)
    source = opened("a.txt", options)
    assert source.tokenizer == given
    assert documents(source, "validation") == ["something else"]


def test_the_fingerprint_follows_content_documents_tokenizer_and_context_alone(here):
    here("a/1.txt", "ab")
    here("a/2.txt", "c")
    here("same/x.txt", "ab")
    here("same/y.txt", "c")
    here("shifted/1.txt", "a")
    here("shifted/2.txt", "bc")
    first = opened("a").fingerprint
    assert first == opened("same", seed=5).fingerprint
    others = [
        opened("shifted"),
        opened("a", TextOptions(9, "byte", 0, 0)),
        opened("a", TextOptions(8, "bpe:300", 0, 0)),
    ]
    assert len({first, *(source.fingerprint for source in others)}) == 4


def test_an_unknown_tokenizer_is_refused(here):
    here("a.txt", "a")
    message = problem(opened, "a.txt", TextOptions(8, "words", 0, 0), kind=ConfigError)
    assert "data.tokenizer='words'" in message


# A column of texts, for a language model.

STORIES = ["once", None, "upon\na time", "", "there was", float("nan"), "é日本"]


@pytest.mark.parametrize("scheme", ["csv", "json", "parquet"])
def test_each_value_of_a_column_is_a_document_and_missing_ones_are_none(here, scheme):
    frame = pd.DataFrame({"story": STORIES, "target": range(len(STORIES))})
    here("d/.keep", "")
    if scheme == "csv":
        frame.to_csv("d/a.csv", index=False)
    elif scheme == "json":
        records = [{"story": None if story != story else story} for story in STORIES]
        here("d/a.json", "".join(json.dumps(record) + "\n" for record in records))
    else:
        frame.to_parquet("d/a.parquet")
    source = open_text_column(open_source(f"{scheme}:d"), "story", EVERYTHING, 0)
    assert documents(source) == ["once", "upon\na time", "there was", "é日本"]
    assert source.is_ready


CHATS = [
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello\nyou"}],
    [{"role": "system", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]}],
    None,
    [{"from": "human", "value": "why"}, {"from": "gpt", "value": None}],
    [],
]
CHAT_TEXTS = [
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello\nyou<|im_end|>\n",
    "<|im_start|>system\nbe kind<|im_end|>\n",
    "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n",
]


def test_chat_messages_become_text_by_a_template(here):
    for value in ({"chat": CHATS}, pd.DataFrame({"chat": CHATS}), [{"chat": chat} for chat in CHATS]):
        source = open_text_column(source_from_value("m:f", value), "chat", EVERYTHING, 0)
        assert documents(source) == CHAT_TEXTS


def test_chat_messages_are_refused_where_no_text_is_learnt(preprocessing):
    source = source_from_value("m:f", {"chat": CHATS, "target": [0, 1, 0, 1, 0]})
    with pytest.raises(DataError, match=r"column 'chat' .* holds chat messages.*data\.text=chat"):
        inspect_source(source, preprocessing())


@pytest.mark.parametrize("count", [1, 3])
def test_chat_messages_in_files_are_read_whether_or_not_chats_have_one_length(here, count):
    chats = [[{"role": "user", "content": "hi"}] * (1 + row % count) for row in range(4)]
    here("a.json", "".join(json.dumps({"chat": chat}) + "\n" for chat in chats))
    pd.DataFrame({"chat": chats}).to_parquet("a.parquet")
    turn = "<|im_start|>user\nhi<|im_end|>\n"
    for scheme in ("json", "parquet"):
        source = open_text_column(open_source(f"{scheme}:a.{scheme}"), "chat", EVERYTHING, 0)
        assert documents(source) == [turn * len(chat) for chat in chats]


@pytest.mark.parametrize(
    ("value", "pieces"),
    [
        ({"a": 1}, ["holds a dict (a)", "[{role, content}, ...]"]),
        ([{"a": "x"}], ["holds a list (dict)"]),
        ([{"role": "user", "content": 5}], ["content '5' is no text"]),
        (7, ["holds 7", "a int", "a column of text"]),
    ],
)
def test_a_column_of_other_values_is_refused_by_name(value, pieces):
    source = source_from_value("m:f", {"story": [value] * 4})
    message = problem(open_text_column, source, "story", EVERYTHING, 0)
    assert all(piece in message for piece in ["data.text='story'", *pieces]), message


def given(**splits):
    return source_from_value(
        "m:f", {name: pd.DataFrame({"story": stories}) for name, stories in splits.items()}
    )


def test_rows_keep_the_split_that_their_source_gives_them():
    source = open_text_column(given(train=["a", "b"], val=["c"], test=["d", "e"]), "story", HALVES, 0)
    assert {part.split: documents(source, part.split) for part in source.parts} == {
        "train": ["a", "b"],
        "validation": ["c"],
        "test": ["d", "e"],
    }


def test_of_a_given_training_split_alone_some_pieces_are_held_out():
    stories = [f"story {number}" for number in range(200)]
    source = open_text_column(given(train=stories, test=["t"]), "story", HALVES, 4)
    split = split_rows(4, np.arange(200), 0.25, 0.0)
    held_out = [story for story, number in zip(stories, split, strict=True) if number == 1]
    assert documents(source, "validation") == held_out
    assert documents(source, "test") == ["t"]
    assert 20 < len(held_out) < 80


def test_pieces_are_numbered_through_over_the_blocks_of_a_source(here):
    stories = [f"story {number}" for number in range(300)]
    for part in range(3):
        frame = pd.DataFrame({"story": stories[part * 100 : part * 100 + 100]})
        frame.to_csv(f"{part}.csv", index=False)
    source = open_text_column(open_source("csv:*.csv"), "story", HALVES, 1)
    split = split_rows(1, np.arange(300), 0.25, 0.25)
    assert documents(source, "test") == [s for s, number in zip(stories, split, strict=True) if number == 2]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("stor", ["data.text='stor'", "did you mean 'story'", "its columns are story, size"]),
        ("size", ["data.text='size' holds 1", "a int", "column of text"]),
        ("vector", ["data.text='vector' has shape (2,) per row", "one text per row"]),
    ],
)
def test_a_column_that_is_none_of_text_is_refused(column, expected):
    block = {"story": np.array(["a", "b"], object), "size": [1, 2], "vector": np.zeros((2, 2))}
    message = problem(open_text_column, source_from_value("m:f", block), column, EVERYTHING, 0)
    assert all(part in message for part in expected), message


def test_a_column_without_any_text_is_refused():
    source = source_from_value("m:f", pd.DataFrame({"story": ["", None]}))
    assert "holds no text" in problem(open_text_column, source, "story", EVERYTHING, 0)


# A column of texts, to classify.


@pytest.fixture
def reviews():
    reviews = [f"review {number} of a film that was {'good' * (number % 3)}" for number in range(90)]
    reviews[3], reviews[4], reviews[5] = "ab", "", None
    return pd.DataFrame({"review": reviews, "stars": [number % 3 for number in range(90)], "other": 1.5})


def encoded(frame, preprocessing, options=None, **data):
    preprocessing = preprocessing(label="stars", is_ready=True, **data)
    options = options or TextOptions(context=12)
    split_of_rows = functools.partial(blocks_with_splits, preprocessing=preprocessing)
    return encode_column(
        source_from_value("m:f", frame), "review", "stars", options, split_of_rows
    ), preprocessing


def test_texts_are_cut_or_padded_to_the_context_and_an_empty_one_is_an_end(reviews, preprocessing):
    source, _ = encoded(reviews, preprocessing)
    ((split, block),) = source.blocks()
    assert list(block) == ["tokens", "stars"]
    assert split is None
    tokens = block["tokens"]
    assert tokens.shape == (90, 12)
    assert tokens.dtype == np.uint16
    assert tokens[3].tolist() == [97 + 3, 98 + 3] + [PAD] * 10
    assert tokens[4].tolist() == tokens[5].tolist() == [END] + [PAD] * 11
    assert tokens[0].tolist() == [byte + 3 for byte in b"review 0 of a film"[:12]]
    assert block["stars"].tolist() == reviews["stars"].tolist()
    assert source.is_ready


def test_rows_are_partitioned_as_they_are_without_their_texts_encoded(reviews, preprocessing):
    source, made = encoded(reviews, preprocessing)
    plain = [split for _, split in blocks_with_splits(source_from_value("m:f", reviews), made)]
    after = [split for _, split in blocks_with_splits(source, made)]
    np.testing.assert_array_equal(np.concatenate(after), np.concatenate(plain))
    frames = {"train": reviews[:50], "test": reviews[50:]}
    source = encode_column(
        source_from_value("m:f", frames),
        "review",
        "stars",
        TextOptions(context=12),
        functools.partial(blocks_with_splits, preprocessing=made),
    )
    assert [(split, len(block["stars"])) for split, block in source.blocks()] == [("train", 50), ("test", 40)]


def test_for_classification_bpe_is_fitted_on_the_training_rows_alone(reviews, preprocessing):
    source, made = encoded(reviews, preprocessing, TextOptions(12, "bpe:320"), validation_fraction=0.4)
    split = np.concatenate(
        [split for _, split in blocks_with_splits(source_from_value("m:f", reviews), made)]
    )
    training = [text or "" for text, number in zip(reviews["review"], split, strict=True) if number == 0]
    training = [text if isinstance(text, str) else "" for text in training]
    assert 0 < len(training) < 90
    assert source.tokenizer == BPETokenizer.fit(training, 320).to_json()


def test_groups_of_any_size_encode_alike(reviews, preprocessing, monkeypatch):
    whole = encoded(reviews, preprocessing)[0]
    monkeypatch.setattr(text_module, "GROUP_CHARS", 40)
    small = encoded(reviews, preprocessing)[0]
    for (_, one), (_, other) in zip(whole.blocks(), small.blocks(), strict=True):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])


def test_the_fingerprint_of_encoded_rows_follows_text_label_and_context(reviews, preprocessing):
    first = encoded(reviews, preprocessing)[0].fingerprint
    assert encoded(reviews, preprocessing)[0].fingerprint == first
    assert encoded(reviews, preprocessing, TextOptions(13))[0].fingerprint != first
    assert encoded(reviews.assign(stars=0), preprocessing)[0].fingerprint != first
    assert encoded(reviews.assign(review="same"), preprocessing)[0].fingerprint != first


def test_a_label_that_is_not_there_is_refused(reviews, preprocessing):
    assert "data.label='stars' is not a column" in problem(
        encoded, reviews.drop(columns="stars"), preprocessing
    )


def test_text_read_twice_gives_the_same_rows(here):
    shutil.copytree(os.path.join(sysconfig.get_path("stdlib"), "json"), "d")
    options = TextOptions(32, "bpe:400", 0.2, 0.2)
    one, other = rows_of(opened("d", options)), rows_of(opened("d", options))
    assert one.keys() == other.keys()
    for split, rows in one.items():
        np.testing.assert_array_equal(rows, other[split])
