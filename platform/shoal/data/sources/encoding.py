"""Tells the encoding of text by a sample of its bytes."""

import codecs
import re

from shoal.data.sources.opening import UTF8

HIGH = re.compile(rb"[\x80-\xff]+")
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def find_encoding(slices: list[bytes]) -> str | None:
    """Return the encoding of slices of a file, the first of which is its beginning; None: it is not clear.

    UTF-8 is strict. Of what is not UTF-8, lone bytes above 127 among ASCII are Western European, and pairs of them
    in the ranges of Chinese characters are GB18030.
    """
    head = slices[0]
    for bom, name in BOMS.items():
        if head.startswith(bom):
            return UTF8 if bom == codecs.BOM_UTF8 else name  # Arrow skips the mark of UTF-8
    pairs = head[: min(len(head), 4096) // 2 * 2]
    if pairs and b"\0" in pairs:
        # ASCII in UTF-16 has a NUL in every other byte.
        even, odd = pairs[::2].count(0), pairs[1::2].count(0)
        if max(even, odd) > 0.3 * len(pairs) / 2 and min(even, odd) < 0.05 * len(pairs) / 2:
            return "utf-16-le" if odd > even else "utf-16-be"
        return None
    if all(_is_utf8(part) for part in slices):
        return UTF8
    return _of_bytes_above_ascii(b"\n".join(slices))


def _is_utf8(part: bytes) -> bool:
    """Whether bytes are UTF-8, apart from a character that is cut at either end."""
    start = next((at for at in range(min(4, len(part))) if part[at] & 0xC0 != 0x80), 0)
    return _decodes(part[start:], UTF8)


def _of_bytes_above_ascii(text: bytes) -> str | None:
    runs = HIGH.findall(text)
    lone = sum(len(run) == 1 for run in runs)
    letters = [byte for run in runs for byte in run]
    # Letters of Western European are above 0xBF; 0x80-0x9F begin characters of Shift JIS, and are dashes and quotes.
    signs = sum(byte < 0xA0 for byte in letters)
    if lone >= 0.5 * len(runs) and (signs < 0.3 * len(letters) or not _decodes(text, "shift_jis")):
        # cp1252 is Latin-1 with letters in the place of control characters, and leaves five bytes undefined.
        return "latin-1" if re.search(rb"[\x81\x8d\x8f\x90\x9d]", text) else "cp1252"
    even = sum(len(run) % 2 == 0 for run in runs)
    leads = [run[at] for run in runs for at in range(0, len(run) - 1, 2)]
    # 0xA1-0xA3 are punctuation, 0xB0-0xD7 the 3,755 characters of the first level of GB 2312.
    common = sum(0xB0 <= lead <= 0xD7 or 0xA1 <= lead <= 0xA3 for lead in leads)
    if even >= 0.9 * len(runs) and leads and common >= 0.8 * len(leads):
        return "gb18030" if _decodes(text, "gb18030") else None
    return None


def _decodes(text: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(text, final=False)
    except UnicodeDecodeError:
        return False
    return True
