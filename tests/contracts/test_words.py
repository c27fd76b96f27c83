"""The sources use the field's terms: the private words of earlier versions do not come back.

`RETIRED` maps a word to the term that replaced it. A word is forbidden as a part of any identifier; `PHRASES` are
forbidden in prose (docstrings, comments, messages) in the forms that carried the retired meaning.
"""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for folder in ("platform", "jobs", "tests", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if path != Path(__file__).resolve()
)
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
PAGES.remove("docs/decisions.md")  # it names what the words replaced

RETIRED = {
    "pantry": "dataset cache",
    "deal": "partition",
    "dealt": "partitioned",
    "hands": "shard refs",
    "told": "spec",
    "mint": "create",
    "minted": "created",
    "guardian": "watchdog",
    "rehearse": "warmup",
    "rehearsal": "warmup",
    "undisturbed": "uninterrupted",
    "wishes": "control flags",
    "asides": "control flags",
    "foresee": "predict",
    "foreseen": "predicted",
    "foretold": "predicted",
    "mend": "fix",
    "mended": "fixed",
    "facts": "metadata",
    "assess": "evaluate",
    "deliver": "package and verify",
    "delivery": "package and verify",
}
# Whole identifiers, whose words alone are ordinary.
RETIRED_NAMES = {
    "Alone": "SingleProcess",
    "Assignment": "WorkerSpec",
    "FromRay": "TuneSchedulerAdapter",
    "Order": "TrialSpec",
    "Pieces": "micro-batches",
    "Prepared": "DatasetInfo",
    "Recipe": "PreprocessingSpec",
    "Standing": "CheckpointRef",
    "Way": "TrainingSetup",
    "Whole": "full batch",
    "add_up": "all_reduce",
    "keep_level": "sync",
    "way": "setup",
}
# Keys and files of runs made before, which are still read.
KEPT = {"is_delivered", "facts.json"}
PHRASES = {
    r"\bpantry\b": "dataset cache",
    r"\b(?:is|are|was|were|be|been) dealt\b|\bdeals? (?:out|rows|to)\b": "partitioned, divided",
    r"\bminted\b|\bmints\b": "created",
    r"\bguardian\b": "watchdog",
    r"\brehears": "warm-up",
    r"\bundisturbed\b": "uninterrupted, single-process",
    r"\bfore(?:see|sees|seen|told|tells)\b": "predicted",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\b(?:is|are|was|were|be|been|being|as) told\b": "receives, is passed, reported",
    r"\btold (?:of|by|which|that|without|otherwise)\b": "receives, is passed, reported",
    r"\bputs? out\b": "returns, outputs",
    r"\b(?:is|are|be) given\b": "receives",
    r"\b(?:brings?|brought|bringing|keeps?|kept) (?:\w+ ){0,4}level\b|\blevel with\b": "syncs, in sync",
    r"\badd(?:s|ed)? up (?:over|gradients|the gradients)\b": "all-reduce",
    r"\bset ?aside\b|\basides\b": "control flags",
    r"\bfor it is\b|\bthat which\b": "because",
}


def words_of(identifier: str) -> set[str]:
    """Split snake_case and CamelCase into lower-case words."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)
    return {part.lower() for part in parts}


def tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(text).readline)


def retired_identifiers(text: str) -> list[str]:
    """Return 'line: name -> term' of each identifier with a retired word."""
    found = []
    for token in tokens(text):
        if token.type != tokenize.NAME or token.string in KEPT:
            continue
        terms = {RETIRED[word] for word in words_of(token.string) & RETIRED.keys()}
        terms |= {RETIRED_NAMES[token.string]} if token.string in RETIRED_NAMES else set()
        found += [f"{token.start[0]}: {token.string} -> {term}" for term in sorted(terms)]
    return found


def retired_phrases(text: str) -> list[str]:
    """Return 'line: phrase -> term' of each retired phrase in a comment or a string."""
    found = []
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokens(text):
        if token.type not in kinds:
            continue
        prose = re.sub(r"\n\s*(?:#\s*)?", " ", token.string)
        for pattern, term in PHRASES.items():
            found += [
                f"{token.start[0]}: {match[0]!r} -> {term}"
                for match in re.finditer(pattern, prose, re.IGNORECASE)
            ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_identifiers_and_prose_use_the_fields_terms(path):
    text = path.read_text()
    assert retired_identifiers(text) + retired_phrases(text) == []


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_use_the_fields_terms(page):
    text = (ROOT / page).read_text()
    assert [match[0] for pattern in PHRASES for match in re.finditer(pattern, text, re.IGNORECASE)] == []


def test_the_scan_finds_a_retired_word_in_every_kind_of_name_and_leaves_others_alone():
    assert retired_identifiers("def deal_rows(told): return HandsMinted\n") == [
        "1: deal_rows -> partition",
        "1: told -> spec",
        "1: HandsMinted -> created",
        "1: HandsMinted -> shard refs",
    ]
    assert retired_identifiers("ideal = recommended(handshake, folder, is_delivered, away)\n") == []


def test_the_scan_finds_a_retired_phrase_across_lines_and_leaves_ordinary_uses_alone():
    assert len(retired_phrases('"""Rows are\n    dealt."""\n# the guardian\n')) == 2
    assert (
        retired_phrases('"""A great deal of rows at the given level; attempt 2, handed to a level."""\n')
        == []
    )
