"""Files as people keep them in repositories, written anew: the format of well-known ones, with rows of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

ROWS = 300


@dataclass(frozen=True)
class PublicFile:
    """A file, and what is right of it.

    Attributes:
        name: of the file.
        content: its bytes.
        label: the column to predict.
        kinds: of columns, as the schema must show them.
        said: parts of lines that tell how it was understood.
        task: what is learnt.
        keys: besides data.source, data.label and task; two at most.
        missing: cells without a value, of all rows, by column.
    """

    name: str
    content: bytes
    label: str
    kinds: dict[str, str]
    said: tuple[str, ...]
    task: str = "classification"
    keys: dict[str, str] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def overrides(self) -> list[str]:
        keys = {"data.label": self.label, "task": self.task} | self.keys
        return [f"{key}={value}" for key, value in keys.items()]

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        path.write_bytes(self.content)
        return path


def _rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _comma(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace(".", ",")


def wine_quality() -> PublicFile:
    """Semicolons, quoted names with blanks, plain numbers without a leading zero."""
    rng = _rng()
    names = [
        "fixed acidity",
        "volatile acidity",
        "citric acid",
        "residual sugar",
        "chlorides",
        "pH",
        "alcohol",
    ]
    rows = [";".join(f'"{name}"' for name in [*names, "quality"])]
    for _ in range(ROWS):
        alcohol = rng.uniform(8, 14)
        quality = int(np.clip(round((alcohol - 8) / 2 + 4), 4, 7))
        values = [
            f"{rng.uniform(5, 12):.1f}",
            f"{rng.uniform(0.1, 1.2):.2f}".removeprefix("0"),
            f"{rng.uniform(0, 0.8):.2f}".removeprefix("0"),
            f"{rng.uniform(1, 9):.1f}",
            f"{rng.uniform(0.02, 0.2):.3f}".removeprefix("0"),
            f"{rng.uniform(2.9, 3.8):.2f}",
            f"{alcohol:.1f}",
        ]
        rows.append(";".join([*values, str(quality)]))
    return PublicFile(
        "winequality-red.csv",
        "\n".join(rows).encode() + b"\n",
        "quality",
        dict.fromkeys(names, "number"),
        ("cells are divided by ';'",),
    )


def bank_marketing() -> PublicFile:
    """Semicolons and quoted texts; decimal commas in numbers; `unknown` is a value."""
    rng = _rng()
    rows = ['"age";"job";"balance";"rate";"poutcome";"y"']
    for _ in range(ROWS):
        balance = rng.normal(1000, 3000)
        job = rng.choice(["admin.", "blue-collar", "technician", "unknown"])
        rows.append(
            f'{rng.integers(18, 90)};"{job}";"{_comma(balance, 2)}";{_comma(rng.uniform(0.5, 5), 3)};"unknown";'
            f'"{"yes" if balance > 1000 else "no"}"'
        )
    return PublicFile(
        "bank-eu.csv",
        "\r\n".join(rows).encode() + b"\r\n",
        "y",
        {"age": "number", "job": "category", "balance": "number", "rate": "number"},
        (
            "cells are divided by ';'",
            "',' is the decimal mark in 'balance', 'rate'",
            "'poutcome' has the same value",
        ),
    )


def air_quality() -> PublicFile:
    """Decimal commas, day/month dates, times with points, empty columns and rows at the end, -200 for no value."""
    rng = _rng()
    rows = ["Date;Time;CO(GT);PT08.S1(CO);C6H6(GT);T;RH;;"]
    gaps = 0
    for number in range(ROWS):
        day, hour = divmod(number, 24)
        level = rng.uniform(0.5, 6)
        is_gap = number % 9 == 0
        gaps += is_gap
        rows.append(
            ";".join(
                [
                    f"{10 + day % 18:02}/{3 + day // 18:02}/2004",
                    f"{hour:02}.00.00",
                    "-200" if is_gap else _comma(level, 1),
                    f"{1000 + 100 * level:.0f}",
                    _comma(4 * level + rng.normal(0, 0.2), 1),
                    _comma(rng.uniform(5, 30), 1),
                    _comma(rng.uniform(20, 80), 1),
                    "",
                    "",
                ]
            )
        )
    rows += [";" * 8] * 40
    return PublicFile(
        "AirQualityUCI.csv",
        "\r\n".join(rows).encode() + b"\r\n",
        "C6H6(GT)",
        {"Date": "dates as %d/%m/%Y", "Time": "hours:minutes as seconds", "CO(GT)": "number", "T": "number"},
        (
            "cells are divided by ';'",
            "',' is the decimal mark in",
            "2 columns without a name and without values are left out",
            "rows without any value are left out",
        ),
        task="regression",
        keys={"data.missing": "[-200]"},
        missing={"CO(GT)": gaps},
    )


def pandas_index() -> PublicFile:
    """A frame that was saved with its index, after rows had been removed and shuffled."""
    rng = _rng()
    frame = pd.DataFrame(
        {
            "carat": rng.uniform(0.2, 3, ROWS + 60).round(2),
            "cut": rng.choice(["Fair", "Good", "Ideal"], ROWS + 60),
        }
    )
    frame["price"] = (4000 * frame.carat).round().astype(int)
    frame = frame.sample(ROWS, random_state=1)
    return PublicFile(
        "diamonds.csv",
        frame.to_csv().encode(),
        "price",
        {"carat": "number", "cut": "category"},
        ("its first column has no name and numbers the rows: it is left out",),
        task="regression",
    )


def iris() -> PublicFile:
    """No header, and an empty line at the end."""
    rng = _rng()
    rows = []
    for number in range(ROWS):
        kind = number % 3
        values = [5 + kind * 0.8, 3.4 - kind * 0.3, 1.5 + 1.9 * kind, 0.2 + 0.9 * kind]
        rows.append(
            ",".join(f"{value + rng.normal(0, 0.2):.1f}" for value in values)
            + ["", ",Iris-setosa", ",Iris-versicolor", ",Iris-virginica"][kind + 1]
        )
    return PublicFile(
        "iris.data.csv",
        "\n".join(rows).encode() + b"\n\n",
        "column_5",
        {f"column_{number}": "number" for number in range(1, 5)},
        ("its first row is data, so columns are named column_1 to column_5",),
    )


def excel_bom() -> PublicFile:
    """UTF-8 with a byte order mark, as Excel saves it, and percentages."""
    rng = _rng()
    rows, regions = ["Région,Taux,Effectif,Élu"], ["Île-de-France", "Bretagne", "Corse"]
    for _ in range(ROWS):
        rate = rng.uniform(0, 100)
        rows.append(
            f"{rng.choice(regions)},{rate:.1f}%,{rng.integers(1, 900)},{'oui' if rate > 50 else 'non'}"
        )
    return PublicFile(
        "elections.csv",
        "\ufeff".encode() + "\r\n".join(rows).encode(),
        "Élu",
        {"Région": "category", "Taux": "numbers", "Effectif": "number"},
        ("column 'Taux' is text and is read as numbers",),
    )


def auto_mpg() -> PublicFile:
    """Columns of a fixed width divided by blanks, a tab before the quoted name, `?` for no value, no header."""
    rng = _rng()
    rows, gaps = [], 0
    for number in range(ROWS):
        weight = rng.uniform(1600, 5000)
        power = f"{weight / 25:.1f}"
        if number % 60 == 5:
            power, gaps = "?", gaps + 1
        rows.append(
            f"{50 - weight / 120:<6.1f} {rng.choice([4, 6, 8]):<3} {rng.uniform(70, 450):<10.1f} {power:<10} "
            f"{weight:<10.0f} {rng.uniform(8, 24):<6.1f} {70 + number % 13}  {rng.choice([1, 2, 3])}\t"
            f'"{rng.choice(["ford pinto", "buick skylark 320", "amc rebel sst"])}"'
        )
    return PublicFile(
        "auto-mpg.csv",
        "\n".join(rows).encode() + b"\n",
        "column_1",
        {"column_2": "number", "column_4": "numbers", "column_5": "number", "column_9": "category"},
        ("cells are divided by blanks", "its first row is data", "'column_4' is text and is read as numbers"),
        task="regression",
        missing={"column_4": gaps},
    )


def census() -> PublicFile:
    """A comma and a blank between cells, `?` for no value, no header, a point after the label in none."""
    rng = _rng()
    rows, gaps = [], 0
    for number in range(ROWS):
        age, hours = rng.integers(17, 90), rng.integers(1, 99)
        work = rng.choice(["Private", "State-gov", "Self-emp-not-inc"])
        if number % 25 == 3:
            work, gaps = "?", gaps + 1
        rows.append(
            f"{age}, {work}, {rng.integers(20000, 500000)}, {rng.choice(['Bachelors', 'HS-grad', '11th'])}, {hours}, "
            f"{'>50K' if hours > 40 else '<=50K'}"
        )
    return PublicFile(
        "adult.data.csv",
        "\n".join(rows).encode() + b"\n",
        "column_6",
        {"column_1": "number", "column_2": "category", "column_4": "category", "column_5": "number"},
        ("its first row is data",),
        missing={"column_2": gaps},
    )


def day_month() -> PublicFile:
    """Dates with the day first and a time, as exports of shops have them."""
    rng = _rng()
    rows = ["InvoiceNo,InvoiceDate,Quantity,UnitPrice,Country,Returned"]
    for number in range(ROWS):
        quantity = rng.integers(1, 40)
        rows.append(
            f"{536365 + number},{1 + number % 28}/{1 + number % 12}/2011 {number % 24}:{number % 60:02},{quantity},"
            f"{rng.uniform(0.5, 20):.2f},{rng.choice(['France', 'United Kingdom'])},{int(quantity > 20)}"
        )
    return PublicFile(
        "online_retail.csv",
        "\n".join(rows).encode() + b"\n",
        "Returned",
        {"InvoiceDate": "dates as %d/%m/%Y %H:%M", "Quantity": "number", "Country": "category"},
        (
            "column 'InvoiceDate' is text and is read as dates as %d/%m/%Y %H:%M",
            "'InvoiceNo' looks like an id",
        ),
    )


def latin1() -> PublicFile:
    """Latin-1 with semicolons, as offices of Europe publish it."""
    rng = _rng()
    rows, towns = ["Código;Município;População;Situação"], ["São Paulo", "Brasília", "Maceió"]
    for number in range(ROWS):
        people = rng.integers(900, 90000)
        rows.append(
            f"{number % 40 + 1:05};{rng.choice(towns)};{people};{'urbano' if people > 40000 else 'rural'}"
        )
    return PublicFile(
        "municipios.csv",
        "\r\n".join(rows).encode("latin-1"),
        "Situação",
        {"Código": "category", "Município": "category", "População": "number"},
        (
            "its encoding is cp1252",
            "cells are divided by ';'",
            "'Código' is text, since numbers in it begin with 0",
        ),
    )


def preamble() -> PublicFile:
    """Lines about the file before its header, as instruments and statistical offices write them."""
    rng = _rng()
    countries = ["Chad", "Norway", "Peru"]
    rows = [
        "World Development Indicators, extract",
        "Last updated: 2023-05-10",
        "",
        "country,year,gdp_per_capita,life_expectancy,group",
    ]
    for number in range(ROWS):
        gdp = rng.uniform(500, 60000)
        rows.append(
            f"{rng.choice(countries)},{1990 + number % 30},{gdp:.1f},{50 + gdp / 2000:.1f},"
            f"{'high' if gdp > 20000 else 'low'}"
        )
    return PublicFile(
        "wdi.csv",
        "\n".join(rows).encode() + b"\n",
        "group",
        {"country": "category", "year": "number", "gdp_per_capita": "number"},
        ("its first 3 lines are no rows: left out",),
    )


def commented() -> PublicFile:
    """Lines that begin with # before the header, and tabs."""
    rng = _rng()
    rows = ["# station 11035, sampled hourly", "# units: C, hPa", "time\ttemperature\tpressure\train"]
    for number in range(ROWS):
        pressure = rng.uniform(980, 1040)
        rows.append(
            f"2021-{1 + number // 28 % 12:02}-{1 + number % 28:02}T{number % 24:02}:00:00Z\t"
            f"{rng.normal(10, 8):.1f}\t{pressure:.1f}\t"
            f"{'dry' if pressure > 1010 else 'wet'}"
        )
    return PublicFile(
        "station.tsv",
        "\n".join(rows).encode() + b"\n",
        "rain",
        {"time": "date", "temperature": "number", "pressure": "number"},
        ("its first 2 lines are no rows: left out", "cells are divided by tabs"),
    )


def amounts() -> PublicFile:
    """Quoted amounts of money with separators of thousands, negative ones in brackets, blanks around names."""
    rng = _rng()
    rows = ["Invoice Id , Amount , Tax , Status"]
    for number in range(ROWS):
        amount = rng.normal(4000, 6000)
        shown = f"${abs(amount):,.2f}"
        rows.append(
            f'INV-{number:04},"{shown if amount >= 0 else f"({shown})"}",{rng.integers(0, 25)}%,'
            f"{'paid' if amount > 4000 else 'open'}"
        )
    return PublicFile(
        "invoices.csv",
        "\n".join(rows).encode() + b"\n",
        "Status",
        {"Amount": "numbers", "Tax": "numbers", "Invoice Id": "category, hashed"},
        ("column 'Amount' is text and is read as numbers", "'Invoice Id' looks like an id"),
    )


PUBLIC_FILES: tuple[Callable[[], PublicFile], ...] = (
    wine_quality,
    bank_marketing,
    air_quality,
    pandas_index,
    iris,
    excel_bom,
    auto_mpg,
    census,
    day_month,
    latin1,
    preamble,
    commented,
    amounts,
)
