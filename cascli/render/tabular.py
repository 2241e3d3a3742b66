"""Tidy tables as the bytes of csv and Parquet files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from cascli.analysis.tidy import Table
from cascli.errors import UsageError


def csv_of(table: Table) -> str:
    """All columns, unrounded; unknown values are empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(table.columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(for_spreadsheets, table.records))
    return buffer.getvalue()


def for_spreadsheets(record: Mapping[str, object]) -> dict[str, object]:
    """A row of a csv whose texts no spreadsheet takes for a formula."""
    return {
        key: f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
        for key, value in record.items()
    }


def check_parquet() -> None:
    """Check that Parquet can be written here.

    Raises:
        UsageError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401 - only whether it is installed
    except ImportError:
        raise UsageError("Parquet needs pyarrow: pip install 'cascli[tables]', or use csv") from None


def parquet_of(table: Table) -> bytes:
    """All columns with their types, including those without any value.

    Raises:
        UsageError: pyarrow is not installed.
    """
    check_parquet()
    import pyarrow
    import pyarrow.parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in table.columns.items()])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table.records, schema=schema), buffer)
    return buffer.getvalue()
