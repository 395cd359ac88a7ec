"""Reading of report tables and CSV manifests as text, with exact row numbers for what is not UTF-8."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medfm.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

DELIMITERS = (",", ";", "\t", "|")


def spreadsheet_row(position: int, header: bool = True) -> int:
    """The number a spreadsheet shows for data row `position` (from 0): the header is row 1."""
    return position + (2 if header else 1)


def some(numbers: list[int], n: int = 5) -> str:
    """'3, 7, 12 and 9 more'."""
    shown = ", ".join(f"{i:,}" for i in numbers[:n])
    return shown if len(numbers) <= n else f"{shown} and {len(numbers) - n:,} more"


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except FileNotFoundError:
        raise DataError(f"table '{path}' does not exist") from None
    except (OSError, EOFError) as error:
        raise DataError(f"table '{path}' cannot be read: {error}") from None


def is_broken(text: object) -> bool:
    """Whether `text` holds bytes that were not UTF-8 (kept as lone surrogates by a lenient read)."""
    return isinstance(text, str) and not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text)


def _guess(raw: bytes) -> str:
    """The encoding that bytes which are not UTF-8 most likely have."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    # 0x80-0x9f are controls in latin-1 and quotes or dashes in Windows' cp1252.
    return "cp1252" if any(0x80 <= b <= 0x9F for b in raw) else "latin-1"


def read_table(
    path: Path,
    encoding: str = "utf-8",
    names: tuple[str, ...] = (),
    lenient: bool = False,
    hint: str = "encoding",
    strict: bool = False,
    delimiter: str = "",
    quoted: bool = True,
) -> pd.DataFrame:
    """A CSV, TSV (also .gz) or parquet table; every cell is text, "" where empty.

    `attrs["rows"]` of a text table numbers its rows as a spreadsheet does: the first line is 1, blank lines count.

    Args:
        encoding: of a text table; a UTF-8 byte-order mark is dropped.
        names: column names of a table without a header.
        lenient: keep bytes that are not UTF-8 as lone surrogates (`is_broken` finds them) instead of raising.
        hint: the option that sets the encoding, for the message.
        delimiter: read off the first line where empty.
        quoted: whether quotation marks enclose cells.
        strict: refuse a quoted text that goes on after its closing quote, which may have swallowed cells or rows.

    Raises:
        DataError: missing, unreadable, empty, rows longer than the header or of another delimiter, a quote that is never
            closed, or not in `encoding`; names the rows.
    """
    import pandas as pd

    if path.suffix == ".parquet":
        try:
            frame = pd.read_parquet(path)
        except FileNotFoundError:
            raise DataError(f"table '{path}' does not exist") from None
        except Exception as error:
            raise DataError(f"table '{path}' is no readable parquet file: {type(error).__name__}") from None
        return frame.apply(lambda column: column.map(lambda v: "" if v is None or v != v else str(v)).astype(object))
    raw = _read_bytes(path)
    codec = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        text, broken = raw.decode(codec), False
    except LookupError:
        raise DataError(f"table '{path}': '{encoding}' is no known text encoding") from None
    except UnicodeDecodeError:
        if codec != "utf-8-sig":
            raise DataError(f"table '{path}' is not {encoding} text; set {hint}= to its encoding") from None
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"table '{path}' is UTF-16, not UTF-8: set {hint}=utf-16") from None
        text, broken = raw.decode("utf-8-sig", errors="surrogateescape"), True
    frame = _parse(path, text, names, strict, delimiter, quoted)
    if broken and not lenient:
        bad = [i for i, row in enumerate(frame.itertuples(index=False)) if any(is_broken(v) for v in row)]
        columns = [c for c in frame.columns if any(is_broken(v) for v in frame[c])]
        rows = some([frame.attrs["rows"][i] for i in bad])
        where = f"{len(bad):,} rows" if len(bad) != 1 else "1 row"
        raise DataError(
            f"table '{path}' is not UTF-8 in {where}: row {rows}"
            + (f" (columns: {', '.join(columns)})" if columns else "")
            + f". The bytes look like {_guess(raw)}: save the table as UTF-8 or set {hint}={_guess(raw)}"
        )
    return frame


def _records(path: Path, text: str, delimiter: str, strict: bool, quoted: bool) -> tuple[list[list[str]], list[int]]:
    """(the records that hold anything, their numbers as a spreadsheet shows them)."""
    csv.field_size_limit(16 * 2**20)
    # A quote that is never closed swallows the rest of the file without a word: then it swallows this line too.
    end = "\x1eend\x1e"
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(f"{text}\n{end}", newline=""), delimiter=delimiter, strict=strict, quoting=quoting)
    rows: list[list[str]] = []
    numbers: list[int] = []
    number = 0
    try:
        for number, row in enumerate(reader, start=1):
            if row:
                rows.append(row)
                numbers.append(number)
    except csv.Error as error:
        word = str(error) if "field" in str(error) else "a quote within a quoted text; write it twice"
        if "unexpected end" in str(error):
            word = "a quote that is never closed"
        raise DataError(f"table '{path}' is no readable CSV: row {number + 1:,}: {word}") from None
    if rows[-1] != [end]:
        raise DataError(f"table '{path}' is no readable CSV: row {numbers[-1]:,}: a quote that is never closed")
    return rows[:-1], numbers[:-1]


def _parse(
    path: Path, text: str, names: tuple[str, ...], strict: bool = False, delimiter: str = "", quoted: bool = True
) -> pd.DataFrame:
    import pandas as pd

    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = delimiter or max(DELIMITERS, key=first.count)
    rows, numbers = _records(path, text, delimiter, strict, quoted)
    if names:
        header = list(names)
    else:
        if not rows:
            raise DataError(f"table '{path}' is empty")
        header = [h.strip() for h in rows[0]]
        rows, numbers = rows[1:], numbers[1:]
    twice = sorted({h for h in header if header.count(h) > 1 and h})
    if twice:
        raise DataError(f"table '{path}' has two columns named '{twice[0]}'")
    width = len(header)
    ragged = [i for i, r in enumerate(rows) if len(r) != width]
    if ragged:
        longer = [i for i in ragged if any(cell.strip() for cell in rows[i][width:])]
        if longer:
            where = some([numbers[i] for i in longer])
            raise DataError(
                f"table '{path}': row {where} has more cells than the {width} columns; quote texts that contain '{delimiter}'"
            )
        other = [i for i in ragged if len(rows[i]) == 1 < width and any(rows[i][0].count(d) >= width - 1 for d in DELIMITERS)]
        if other:
            raise DataError(
                f"table '{path}': row {some([numbers[i] for i in other])} does not part its cells by '{delimiter}', as the "
                "first line does; write the table with one delimiter"
            )
        for i in ragged:
            rows[i] = (rows[i] + [""] * width)[:width]
    if any(map(is_broken, header)):
        raise DataError(f"table '{path}': its header is not UTF-8: save the table as UTF-8 or set its encoding")
    # object, not Arrow strings: those cannot hold bytes that are not UTF-8.
    frame = pd.DataFrame(rows, columns=header, dtype=object)
    frame.attrs["rows"] = numbers
    return frame
