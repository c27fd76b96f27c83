import json
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import decoders

from shoal.data.tokenizer import (
    END,
    MASK,
    PAD,
    BPETokenizer,
    ByteTokenizer,
    make_tokenizer,
    token_bytes,
    tokenizer_from_json,
)
from shoal.errors import ConfigError, DataError, ModelError

WORDS = "the cat sat on the mat; the dog sat on the log.\n"
CORPUS = [
    f"{WORDS}{number} naïve café {number * 7919} résumé \U0001f600 日本語 {WORDS}" for number in range(400)
]
AWKWARD = [
    "",
    " ",
    "a\r\nb\rc\n\n\n  \t d",
    "\0\x01\x7f",
    "\ufeffwith a mark of byte order",
    "e\u0301 \u00e9 \u1e9b\u0323",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0010ffff \ufffd \ufdd0",
    "<pad><mask><end></s>[MASK]<|endoftext|>",
    "日本語 العربية עברית हिन्दी",
    "".join(map(chr, range(0x300))),
    "x" * 20_000,
]


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.fit(CORPUS, 400)


@pytest.fixture(params=["byte", "bpe"])
def tokenizer(request, bpe):
    return ByteTokenizer() if request.param == "byte" else bpe


def test_bytes_follow_the_three_special_ids():
    tokenizer = make_tokenizer("byte", [])
    assert (PAD, MASK, END, tokenizer.vocabulary) == (0, 1, 2, 259)
    ids = tokenizer.encode("aé")
    assert ids.tolist() == [97 + 3, 0xC3 + 3, 0xA9 + 3]
    assert ids.dtype == np.int32


@pytest.mark.parametrize("text", AWKWARD, ids=range(len(AWKWARD)))
def test_any_text_comes_back_as_it_was_and_no_text_spells_a_special_id(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == np.int32
    assert not len(ids) or (ids.min() >= 3 and ids.max() < tokenizer.vocabulary)


def test_random_characters_of_all_of_unicode_come_back_as_they_were(tokenizer):
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 0x110000, 5_000)
    text = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_many_texts_are_encoded_as_each_alone(tokenizer):
    for ids, text in zip(tokenizer.encode_many(AWKWARD), AWKWARD, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_special_ids_are_left_out_and_invalid_utf8_is_replaced_in_decoding(tokenizer):
    a, half = tokenizer.encode("a").tolist(), tokenizer.spelling.index(b"\xc3")
    assert tokenizer.decode([PAD, *a, MASK, half, *a, END]) == "a\ufffda"


@pytest.mark.parametrize("text", [*AWKWARD, *CORPUS[:3]], ids=range(len(AWKWARD) + 3))
def test_the_bytes_of_the_tokens_add_up_to_those_of_the_text(tokenizer, text):
    assert token_bytes(tokenizer)[tokenizer.encode(text)].sum() == len(text.encode())


def test_special_ids_stand_for_no_bytes(tokenizer):
    counts = token_bytes(tokenizer)
    assert counts.shape == (tokenizer.vocabulary,)
    assert counts[:3].tolist() == [0, 0, 0]
    assert counts[3:].min() == 1


def test_every_byte_has_one_token_and_every_token_is_spelled_as_the_library_spells_it(bpe):
    singles = [spelled for spelled in bpe.spelling if len(spelled) == 1]
    assert sorted(singles) == [bytes([byte]) for byte in range(256)]
    words = {
        number: word for word, number in json.loads(bpe.to_json())["tokenizer"]["model"]["vocab"].items()
    }
    library = decoders.ByteLevel()
    for number, spelled in enumerate(bpe.spelling[3:]):
        assert library.decode([words[number]]) == spelled.decode(errors="replace")


def test_bpe_has_the_asked_vocabulary_and_makes_frequent_words_one_token(bpe):
    assert bpe.vocabulary == 400
    assert [bpe.decode([token]) for token in bpe.encode("the cat sat")] == ["the", " cat", " sat"]


def test_bpe_merges_the_pairs_that_are_counted_by_hand():
    # "ab" is there 5 times and becomes the first merge; then "abc" 3 times, before "abd" 2 times.
    tokenizer = BPETokenizer.fit(["abc abc abc", "abd", "abd"], 300)
    assert tokenizer.spelling[3 + 256] == b"ab"
    assert tokenizer.spelling[3 + 257] == b"abc"
    assert b"abd" in tokenizer.spelling


def test_bpe_ends_early_where_no_pair_is_there_twice():
    assert BPETokenizer.fit(["abcdefg"], 4096).vocabulary == 259


def test_a_fit_is_the_same_in_another_process(bpe):
    code = (
        "import sys; from shoal.data.tokenizer import BPETokenizer;"
        "sys.stdout.write(BPETokenizer.fit(eval(sys.stdin.read()), 400).to_json())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=ascii(CORPUS),
        capture_output=True,
        encoding="utf-8",
        env={
            "PYTHONPATH": ":".join(sys.path),
            "PYTHONIOENCODING": "utf-8",
            "TOKENIZERS_PARALLELISM": "false",
        },
    )
    assert run.stdout == bpe.to_json(), run.stderr


def test_a_tokenizer_comes_back_from_its_json(tokenizer):
    again = tokenizer_from_json(tokenizer.to_json())
    assert type(again) is type(tokenizer)
    assert again.to_json() == tokenizer.to_json()
    assert list(again.spelling) == list(tokenizer.spelling)
    for text in CORPUS[:5]:
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer):
    with pytest.raises(DataError, match=r"U\+D800, as its character 2.*replace"):
        tokenizer.encode_many(["fine", "ab\ud800c"])


@pytest.mark.parametrize(
    "name", ["bytes", "bpe", "bpe:", "bpe:299", "bpe:-4096", "bpe:4k", "byte:300", "", "bpe:٤٠٠"]
)
def test_an_unknown_name_is_refused_with_what_there_is(name):
    with pytest.raises(ConfigError) as caught:
        make_tokenizer(name, CORPUS)
    assert f"data.tokenizer='{name}'" in str(caught.value)
    assert "at least 300" in str(caught.value)
    assert "bpe:4096" in str(caught.value)


def test_the_smallest_bpe_has_300_ids():
    assert make_tokenizer("bpe:300", CORPUS).vocabulary == 300


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"kind": "words"}', '{"kind": "bpe", "tokenizer": {}}'])
def test_what_is_no_tokenizer_is_refused(text):
    with pytest.raises(ModelError, match="the tokenizer"):
        tokenizer_from_json(text)
