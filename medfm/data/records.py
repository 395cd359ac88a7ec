"""JSON, JSON lines and XML files as tables of text, for data cards."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfm.data.card_layout import XmlRows
from medfm.errors import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    import pandas as pd

SUFFIXES = (".json", ".jsonl", ".xml")
_JOINED = "|"  # between several values of one cell


def read_records(path: Path, records: str = "", xml: XmlRows | None = None, encoding: str = "utf-8") -> pd.DataFrame:
    """The rows of a .json, .jsonl or .xml file; every cell is text, "" where absent.

    JSON: a list of objects, or an object of objects (its names become the column `key`), or an object of equally long lists
    (columns). Nested objects become columns `a.b`; lists of plain values are joined with '|'.

    Args:
        records: dotted key below which the rows lie.
        xml: which elements are rows and columns.

    Raises:
        DataError: missing, unreadable, or not of that form; names the file, never its content.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"table '{path}' does not exist") from None
    except OSError as error:
        raise DataError(f"table '{path}' cannot be read: {error.strerror or type(error).__name__}") from None
    if path.suffix.lower() == ".xml":
        if xml is None:
            raise DataError(f"table '{path}' is XML: the card must say with xml: which elements are its rows")
        return _frame(_xml_rows(path, raw, xml))
    try:
        text = raw.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except (UnicodeDecodeError, LookupError):
        raise DataError(f"table '{path}' is not {encoding} text") from None
    if path.suffix.lower() == ".jsonl":
        return _frame(_lines(path, text))
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"table '{path}'{where} is no readable JSON") from None
    return _frame(_json_rows(path, data, records))


def _lines(path: Path, text: str) -> Iterable[dict[str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError(f"table '{path}', line {number:,} is no readable JSON") from None
            if not isinstance(entry, dict):
                raise DataError(f"table '{path}', line {number:,} is no JSON object")
            yield _flat(entry)


def _json_rows(path: Path, data: Any, records: str) -> list[dict[str, str]]:
    for key in filter(None, records.split(".")):
        if not isinstance(data, dict) or key not in data:
            raise DataError(f"table '{path}' has no key '{records}', where the card looks for rows")
        data = data[key]
    if isinstance(data, dict):
        values = list(data.values())
        if values and all(isinstance(v, dict) for v in values):
            return [{"key": str(k), **_flat(v)} for k, v in data.items()]
        if values and all(isinstance(v, list) for v in values) and len({len(v) for v in values}) == 1:
            return [dict(zip(map(str, data), map(_text, row), strict=True)) for row in zip(*values, strict=True)]
        if all(isinstance(v, str | int | float) for v in values):
            return [{"key": str(k), "value": _text(v)} for k, v in data.items()]
    elif isinstance(data, list) and all(isinstance(entry, dict) for entry in data):
        return [_flat(entry) for entry in data]
    elif isinstance(data, list) and all(isinstance(entry, str) for entry in data):
        return [{"value": entry} for entry in data]
    raise DataError(f"table '{path}' is not a list of JSON objects" + (f" below '{records}'" if records else ""))


def _flat(entry: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _text(value)
    return flat


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        plain = all(isinstance(v, str | int | float) for v in value)
        return _JOINED.join(map(_text, value)) if plain else json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _xml_rows(path: Path, raw: bytes, xml: XmlRows) -> list[dict[str, str]]:
    from xml.etree import ElementTree

    def refuse(*_: Any) -> None:
        # Entities are how a small document becomes a huge one, or reads other files.
        raise DataError(f"table '{path}' declares XML entities, which medfm does not expand")

    parser = ElementTree.XMLParser()
    expat = getattr(parser, "parser", None)
    if expat is not None:
        expat.EntityDeclHandler = refuse
    elif b"<!ENTITY" in raw:
        refuse()
    try:
        parser.feed(raw)
        root = parser.close()
    except ElementTree.ParseError as error:
        raise DataError(f"table '{path}', line {error.position[0]} is no readable XML") from None
    shared = {column: _found(root, where) for column, where in xml.document.items()}
    elements = [root] if xml.rows == "." else root.findall(xml.rows)
    return [{**shared, **{column: _found(e, where) for column, where in xml.row.items()}} for e in elements]


def _found(element: Element, where: str) -> str:
    place, _, attribute = where.partition("@") if "[" not in where else _split_attribute(where)
    place = place.rstrip("/")
    elements = element.findall(place) if place and place != "." else [element]
    texts = [e.get(attribute, "") if attribute else "".join(e.itertext()) for e in elements]
    return _JOINED.join(" ".join(t.split()) for t in texts if t.strip())


def _split_attribute(where: str) -> tuple[str, str, str]:
    """'a[@b="c"]/@d' -> 'a[@b="c"]', '@', 'd': the @ within brackets is part of the path."""
    head, bracket, tail = where.rpartition("]")
    place, at, attribute = tail.partition("@")
    return head + bracket + place, at, attribute


def _frame(rows: Iterable[dict[str, str]]) -> pd.DataFrame:
    import pandas as pd

    listed = list(rows)
    columns = list(dict.fromkeys(name for row in listed for name in row))
    return pd.DataFrame([[row.get(c, "") for c in columns] for row in listed], columns=columns, dtype=object)
