"""Cells of text become numbers: amounts, percentages, dates, times of day and durations, as people write them.

`find_reading` learns from texts how a column is written, and `Reading.numbers` applies it. Depends on NumPy and pandas;
independent of columns, files and models.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

Decimal = Literal[".", ","]

# Texts that are no value where numbers are expected, compared in lower case and without blanks around them.
MISSING = frozenset({"", "na", "n/a", "#n/a", "#na", "nan", "null", "nil", "none", "?", "-", "--", "missing"})

MOSTLY = 0.9  # of a column's cells are readable if the column is numbers
LOOKED_AT = 1000  # different texts that decide whether the rest is tried
MOST_WORD = 40  # characters of a number, a date or a duration

# Three letters of any kind would make INV-0001 the amount -1.
_CODES = (
    "USD|EUR|GBP|JPY|CNY|RMB|CHF|AUD|CAD|NZD|HKD|SGD|TWD|KRW|INR|IDR|THB|VND|PHP|MYR|SEK|NOK|DKK|ISK|PLN|CZK|HUF|RON|"
    "BGN|TRY|RUB|UAH|ILS|AED|SAR|EGP|ZAR|NGN|KES|BRL|MXN|ARS|CLP|COP|PEN"
)
_CURRENCY = rf"(?:[A-Z]{{0,2}}[$]|[€£¥₹₩₽₺₴₪₫฿₱₦]|{_CODES}|Rs\.?|kr\.?|zł|Kč|Ft|lei)"
_SPACES = "\u00a0\u202f\u2009"
_DURATION = re.compile(
    r"(?P<sign>-)?(?:(?P<days>\d+) days?,? *)?(?P<h>\d+):(?P<m>\d{2})(?::(?P<s>\d{2}(?:\.\d+)?))?"
)
_TIME_WITH_POINTS = re.compile(r"\s*([01]?\d|2[0-3])\.([0-5]\d)\.([0-5]\d)\s*")
_DAY = {"-": "%d-%m-%Y", "/": "%d/%m/%Y", ".": "%d.%m.%Y"}
_NAMED = ("%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%d-%b-%y", "%d %b %y")
_TIMES = ("", " %H:%M:%S", " %H:%M", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S", " %H:%M:%S.%f")
ISO = "ISO8601"


class CategoryText(str):
    """A value of a column that its source says is a category, although it may look like a number."""

    __slots__ = ()


class Reading(BaseModel):
    """How the texts of a column are numbers.

    Attributes:
        kind: number; date, in seconds since 1970; duration or time of day, in seconds.
        decimal: the decimal mark of numbers.
        format: of dates, as of `strftime`, or ISO8601.
        is_ambiguous: day and month could be the other way round in all texts.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["number", "date", "duration"] = "number"
    decimal: Decimal = "."
    format: str = ""
    is_ambiguous: bool = False

    def numbers(self, texts: np.ndarray) -> np.ndarray:
        """Return float64 for an array of str; NaN where one cannot be read so."""
        distinct, places = _distinct(texts)
        return np.asarray(self._of_distinct(distinct)[places])

    def _of_distinct(self, texts: np.ndarray) -> np.ndarray:
        if self.kind == "date":
            return _dates(texts, self.format)
        if self.kind == "duration":
            return np.array([_duration(text) for text in texts], dtype=np.float64)
        return _amounts(texts, self.decimal)

    def __str__(self) -> str:
        if self.kind == "date":
            return f"dates as {self.format}" + (
                ", day and month could be meant the other way" * self.is_ambiguous
            )
        if self.kind == "duration":
            return "hours:minutes as seconds"
        return "numbers" + (" with a decimal comma" if self.decimal == "," else "")


DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
PLAIN = Reading()


def is_missing_text(texts: np.ndarray, missing: Sequence[str] | None = None) -> np.ndarray:
    """Return where texts stand for no value; `missing` are other texts than the usual ones."""
    distinct, places = _distinct(texts)
    if missing is not None:
        known = np.array([text in missing or not text.strip() for text in distinct], dtype=bool)
    else:
        known = np.array([text.strip().lower() in MISSING for text in distinct], dtype=bool)
    return known[places] if len(distinct) else np.zeros(len(texts), dtype=bool)


def blanked(values: np.ndarray, missing: Sequence[str]) -> np.ndarray:
    """Return values [n] in which None, NaN or NaT stands for each that `missing` names: as text, number or date."""
    if values.ndim != 1 or not missing:
        return values
    if values.dtype.kind in "iuf":
        are_gone = np.isin(values, [float(text) for text in missing if _is_plain_number(text)])
        return np.where(are_gone, np.nan, values) if are_gone.any() else values
    if values.dtype.kind == "M":
        for date in filter(None, map(_as_date, missing)):  # a day names all of its times
            values = np.where(values.astype(date.dtype) == date, np.datetime64("NaT"), values)
        return values
    if values.dtype.kind not in "OUS":
        return values
    texts = values.astype(object)
    are_gone = np.array([isinstance(text, str) and text.strip() in missing for text in texts], dtype=bool)
    texts[are_gone] = None
    return texts


def _is_plain_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_date(text: str) -> np.datetime64 | None:
    """Return a day or a time as one; None: it is neither, e.g. a number, which NumPy takes for a year."""
    try:
        return np.datetime64(text) if DAY.match(text) else None
    except ValueError:
        return None


def candidates(texts: np.ndarray, decimal: Decimal | None = None) -> tuple[Reading, ...]:
    """Return the readings that fit at least half of some texts, the best first."""
    distinct, _ = _distinct(texts)
    if any(isinstance(text, CategoryText) for text in distinct[:1]):
        return ()
    some = distinct[:: max(1, len(distinct) // LOOKED_AT)][:LOOKED_AT]
    if not len(some) or np.median([len(text) for text in some]) > MOST_WORD:
        return ()
    marks: tuple[Decimal, ...] = (decimal,) if decimal else (".", ",")
    tried = [Reading(decimal=mark) for mark in marks]
    # Dates first: 01.02.03 is a date rather than a time.
    tried += [*(Reading(kind="date", format=form) for form in _date_formats(some)), Reading(kind="duration")]
    shares = {reading: float(np.mean(~np.isnan(reading._of_distinct(some)))) for reading in tried}
    found = sorted((reading for reading in tried if shares[reading] >= 0.5), key=lambda one: -shares[one])
    return tuple(found)


def _distinct(texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import pandas as pd  # imported here: it takes 0.3 s, and workers receive rows that do not need it

    places, distinct = pd.factorize(texts)
    return np.asarray(distinct, dtype=object), places


def _amounts(texts: np.ndarray, decimal: Decimal) -> np.ndarray:
    import pandas as pd

    found = np.full(len(texts), np.nan)
    if decimal == ".":
        found = np.array(pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce"), dtype=np.float64)
        found[np.isinf(found)] = np.nan
    pattern = _AMOUNTS[decimal]
    for place in np.flatnonzero(np.isnan(found)):
        found[place] = _amount(texts[place], decimal, pattern)
    return found


def _amount_pattern(decimal: Decimal) -> re.Pattern[str]:
    mark, separators = re.escape(decimal), f"[{'.' if decimal == ',' else ','}' _{_SPACES}]"
    # A group of thousands never begins with 0: 0,418 has a decimal comma.
    whole = rf"[1-9]\d{{0,2}}(?:{separators}\d{{3}})+|\d+"
    number = rf"(?P<whole>{whole})?(?:{mark}(?P<part>\d*))?(?P<power>[eE][-+]?\d+)?"
    return re.compile(
        rf"(?P<open>\()?(?P<sign>[-+−])?(?:{_CURRENCY} ?)?(?P<sign2>[-+−])?{number}"
        rf"(?P<sign3>-)? ?(?P<percent>%)?(?: ?{_CURRENCY})?(?P<close>\))?"
    )


_AMOUNTS: dict[Decimal, re.Pattern[str]] = {".": _amount_pattern("."), ",": _amount_pattern(",")}


def _amount(text: str, decimal: Decimal, pattern: re.Pattern[str]) -> float:
    """Return the number that an amount of money, a percentage or a number with separators stands for, or NaN."""
    if len(text) > MOST_WORD or (match := pattern.fullmatch(text.strip())) is None:
        return np.nan
    whole, part = match["whole"] or "", match["part"] or ""
    if not whole + part or bool(match["open"]) != bool(match["close"]):
        return np.nan
    value = float(f"{re.sub(r'[^0-9]', '', whole) or '0'}.{part or '0'}{match['power'] or ''}")
    signs = "".join(match[name] or "" for name in ("sign", "sign2", "sign3"))
    is_negative = match["open"] or "-" in signs or "−" in signs
    return (-value if is_negative else value) / (100 if match["percent"] else 1)


def _duration(text: str) -> float:
    """Return the seconds of `[N days] H:MM[:SS]` or `HH.MM.SS`, or NaN."""
    text = _TIME_WITH_POINTS.sub(r"\1:\2:\3", text)
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match["m"]) > 59 or float(match["s"] or 0) >= 60:
        return np.nan
    seconds = 3600 * int(match["h"]) + 60 * int(match["m"]) + float(match["s"] or 0)
    seconds += 86400 * int(match["days"] or 0)
    return -seconds if match["sign"] else seconds


def _dates(texts: np.ndarray, form: str) -> np.ndarray:
    import pandas as pd

    stripped = pd.Series([text.strip() for text in texts], dtype=object)
    # A plain number is a year to pandas.
    stripped[[text.isdigit() for text in stripped]] = None
    times = pd.to_datetime(stripped, format=form, errors="coerce", utc=True).dt.tz_localize(None)
    values = times.to_numpy(dtype="datetime64[us]")
    return np.where(np.isnat(values), np.nan, values.astype(np.int64) / 1e6)


def other_way(form: str) -> str:
    """Return a date format with day and month exchanged."""
    return form.replace("%d", "%-").replace("%m", "%d").replace("%-", "%m")


def _date_formats(texts: np.ndarray) -> list[str]:
    """Return formats that the first of some texts has; more than one where day and month may be exchanged."""
    probe = [text.strip() for text in texts[:20]]
    if not any(char.isdigit() for char in "".join(probe)):
        return []
    found = [ISO] if any(re.match(r"\d{4}-\d{1,2}(-\d{1,2}|$)", text) for text in probe) else []
    for mark, day_first in _DAY.items():
        if any(re.match(rf"\d{{1,2}}\{mark}\d{{1,2}}\{mark}\d", text) for text in probe):
            is_short = not any(re.match(rf"\d{{1,2}}\{mark}\d{{1,2}}\{mark}\d{{4}}", text) for text in probe)
            days = day_first.replace("%Y", "%y") if is_short else day_first
            dates = (days, other_way(days))
            found += [date + time for date in dates for time in _TIMES]
        if any(re.match(rf"\d{{4}}\{mark}\d{{1,2}}\{mark}\d", text) for text in probe) and mark != "-":
            found += [f"%Y{mark}%m{mark}%d{time}" for time in _TIMES]
    if any(re.search(r"[A-Za-z]{3}", text) and re.search(r"\d", text) for text in probe):
        found += [date + time for date in _NAMED for time in ("", " %H:%M:%S", " %H:%M")]
    return found
