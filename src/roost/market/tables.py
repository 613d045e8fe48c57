"""Reads a file of rows whatever its form: Parquet, CSV, JSON, JSON lines, and the AWS command line's outputs.

It only makes a table of what is there; what the columns mean is another module's affair.
"""

import gzip
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from roost.ports.errors import Invalid

TEXT_COLUMNS = {
    # `--output text` of aws ec2 describe-spot-price-history, fields in alphabetical order.
    6: ("AvailabilityZone", "InstanceType", "ProductDescription", "SpotPrice", "Timestamp"),
    7: (
        "AvailabilityZone",
        "AvailabilityZoneId",
        "InstanceType",
        "ProductDescription",
        "SpotPrice",
        "Timestamp",
    ),
}
LARGEST = 1 << 30


def load(path: Path) -> pl.DataFrame:
    """The rows of a file. Raises ``Invalid`` with what to do."""
    try:
        size = path.stat().st_size
        head = _head(path)
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}", hint="check the name") from error
    if not size:
        raise Invalid(f"{path} is empty", hint="was it written whole?")
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if size > LARGEST:
        raise Invalid(f"{path} is over 1 GiB of text", hint="split it, or convert it to Parquet")
    content = path.read_bytes()
    if head.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise Invalid(f"{path} is a damaged gzip file: {error}") from error
    return _text(path, content)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (Exception, pl.exceptions.PanicException) as error:
        said = str(error).splitlines()[0]
        raise Invalid(f"{path} is a damaged Parquet file: {said}", hint="fetch it again") from error


def _text(path: Path, content: bytes) -> pl.DataFrame:
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is neither text nor Parquet: {error}") from error
    if not text:
        raise Invalid(f"{path} is empty", hint="was it written whole?")
    if text[0] in "{[":
        return _rows(path, _json(path, text))
    if text.startswith("SPOTPRICEHISTORY\t"):
        return _aws_text(path, text)
    if text.startswith(("---", "+--", "|")):
        return _aws_table(path, text)
    try:
        return pl.read_csv(
            content, null_values=["", "NaN", "nan", "null"], infer_schema_length=None
        )
    except pl.exceptions.PolarsError as error:
        raise Invalid(f"{path} is no table: {str(error).splitlines()[0]}") from error


def _json(path: Path, text: str) -> list[Any]:
    """The rows of one document, of several after one another (a call a region), or of a line each."""
    try:
        found = [msgspec.json.decode(text)]
    except msgspec.DecodeError as whole:
        found = []
        for part in _documents(text):
            try:
                found.append(msgspec.json.decode(part))
            except msgspec.DecodeError as error:
                line = text[: text.index(part)].count("\n") + 1
                raise Invalid(
                    f"{path} is no JSON from line {line} on: {error if found else whole}",
                    hint="was it written whole?",
                ) from error
    rows: list[Any] = []
    for document in found:
        if isinstance(document, dict) and isinstance(document.get("SpotPriceHistory"), list):
            rows += document["SpotPriceHistory"]
        elif isinstance(document, list):
            rows += document
        else:
            rows.append(document)
    return rows


def _documents(text: str) -> list[str]:
    """Documents one after another: an object starts where a line begins with its brace."""
    lines = text.splitlines(keepends=True)
    if all(line.strip()[:1] in ("{", "") and line.strip()[-1:] in ("}", "") for line in lines):
        return [line for line in lines if line.strip()]
    starts = [i for i, line in enumerate(lines) if line.startswith(("{", "["))] + [len(lines)]
    return ["".join(lines[a:b]).strip() for a, b in pairwise(starts) if b > a]


def _rows(path: Path, rows: list[Any]) -> pl.DataFrame:
    if not rows:
        raise Invalid(f"{path} has no rows", hint="did the call find anything?")
    strange = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
    if strange is not None:
        raise Invalid(f"{path}: entry {strange + 1} is no object with fields")
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise Invalid(f"{path} is no table: {str(error).splitlines()[0]}") from error


def _aws_text(path: Path, text: str) -> pl.DataFrame:
    rows = []
    for line, raw in enumerate(text.splitlines(), 1):
        cells = raw.split("\t")
        if cells[0] == "NEXTTOKEN" or not raw.strip():
            continue
        if cells[0] != "SPOTPRICEHISTORY" or len(cells) not in TEXT_COLUMNS:
            raise Invalid(f"{path}: line {line} is no row of a price history: {raw[:80]!r}")
        rows.append(dict(zip(TEXT_COLUMNS[len(cells)], cells[1:], strict=True)))
    return _rows(path, rows)


def _aws_table(path: Path, text: str) -> pl.DataFrame:
    names: list[str] = []
    rows = []
    for line, raw in enumerate(text.splitlines(), 1):
        if not raw.startswith("|"):
            continue
        cells = [cell.strip() for cell in raw.strip().strip("|").split("|")]
        if len(cells) < 2 or all(set(cell) <= {"-", "+"} for cell in cells):
            continue  # a title, or a rule between rows
        if not names or cells == names:
            names = cells
            continue
        if len(cells) != len(names):
            raise Invalid(f"{path}: line {line} has {len(cells)} of {len(names)} cells")
        rows.append(dict(zip(names, cells, strict=True)))
    return _rows(path, rows)
