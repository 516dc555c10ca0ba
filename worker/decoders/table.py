"""Tables as Parquet and CSV: our own observation table, or an earth2studio frame."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from model.domain.errors import DecodeError
from worker.decoders.base import DecodeContext, Decoded
from worker.decoders.earth2studio import decode_earth2studio, is_earth2studio
from worker.decoders.frame import decode_frame
from worker.decoders.report import DecodeReport

__all__ = ["decode_csv", "decode_parquet"]

_NULLS = ["", "NaN", "nan", "NA", "null", "None"]


def decode_parquet(path: Path, context: DecodeContext) -> Decoded:
    """Rows of a Parquet file.

    Raises:
        DecodeError: If it is no Parquet file, too large, or lacks columns.
    """
    report = DecodeReport(format="parquet", size=path.stat().st_size)
    try:
        with pq.ParquetFile(path) as file:
            rows = file.metadata.num_rows
            if rows > context.limits.values:
                raise DecodeError(
                    f"Expected at most {context.limits.values} rows in one file; got {rows}.",
                    reason="too_large",
                )
            table = file.read()
            table.validate(full=True)  # torn pages may hold strings that are no UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DecodeError(f"Expected a Parquet file; {error}.", reason="undecodable") from error
    return _decode(table, context, report)


def decode_csv(path: Path, context: DecodeContext) -> Decoded:
    """Rows of a CSV file with a header line.

    Raises:
        DecodeError: If lines differ in their number of columns, or columns are missing.
    """
    report = DecodeReport(format="csv", size=path.stat().st_size)
    uneven: list[int | None] = []

    def set_aside(row: pacsv.InvalidRow) -> str:
        uneven.append(row.number)
        return "skip"

    content = _utf8(path.read_bytes(), report)
    header = content.split(b"\n", 1)[0].decode().strip().split(",")
    names = [name.strip().strip('"') for name in header]
    if len(set(names)) != len(names):
        raise DecodeError("Expected each column once in the header.", reason="invalid_table")
    try:
        # Every column as text: a faulty cell is then found by column and row.
        table = pacsv.read_csv(
            pa.BufferReader(content),
            read_options=pacsv.ReadOptions(column_names=names, skip_rows=1, use_threads=False),
            parse_options=pacsv.ParseOptions(invalid_row_handler=set_aside),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in names},
                null_values=_NULLS,
                strings_can_be_null=True,
            ),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DecodeError(f"Expected a CSV file; {error}.", reason="undecodable") from error
    for number in uneven:
        detail = f"row {number}: a different number of columns" if number else "uneven row"
        report.reject("invalid_table", detail=detail)
    return _decode(table, context, report)


def _utf8(content: bytes, report: DecodeReport) -> bytes:
    """The text without byte order mark; bytes that are no UTF-8 become question marks, noted."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        content.decode()
    except UnicodeDecodeError:
        report.notes["not_utf8"] += 1
        content = content.decode(errors="replace").encode()
    return content


def _decode(table: pa.Table, context: DecodeContext, report: DecodeReport) -> Decoded:
    names = table.column_names
    columns = {name: table[name] for name in names if not name.startswith("__index_level_")}
    if is_earth2studio(names) and "obs_value" not in columns:
        report.notes["earth2studio_frame"] += 1
        decoded = decode_earth2studio(columns, context, report)
    else:
        decoded = decode_frame(columns, context, report)
    report.bytes_decoded = report.size
    return decoded
