"""The feedback: every decoded observation of the window with O-B, O-A, spread, rank and one flag.

Written as Parquet, the table itself, and as an IODA-like NetCDF file; as ODB-2 on request
(`worker.outputs.feedback_odb`).
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.domain.errors import InvalidInput, StorageError
from model.domain.observations import FEEDBACK_SCHEMA, QC_FLAGS, validate_table
from worker.columns import codes, groups, numbers
from worker.outputs.attributes import global_attributes
from worker.outputs.feedback_ioda import check_ioda, write_ioda
from worker.outputs.files import product_file, put_file
from worker.outputs.product import Product, Written

__all__ = ["checked_feedback", "write"]


def checked_feedback(table: pa.Table) -> pa.Table:
    """The table, once it is sure that each observation is in it once and has exactly one flag.

    Raises:
        InvalidInput: If an observation comes twice, or its flag is not the number of its check.
    """
    table = validate_table(table, FEEDBACK_SCHEMA)
    if not len(table):
        return table
    identity = groups(codes(table, "batch_id")[0], numbers(table, "observation_id"))
    twice = len(identity) - len(np.unique(identity))
    if twice:
        raise InvalidInput(
            f"Expected every observation once in the feedback; {twice} of {len(identity)} rows "
            "repeat another."
        )
    check, names = codes(table, "rejected_by")
    known = np.array([*(QC_FLAGS[name].number for name in names), 0])
    flags = numbers(table, "qc_flag").astype(int)
    wrong = np.flatnonzero(flags != known[check])
    if len(wrong):
        row = int(wrong[0])
        raise InvalidInput(
            f"Expected the flag {known[check[row]]} of the rejecting check in every row; got "
            f"{flags[row]} in row {row}, and in {len(wrong)} rows in all.",
            row=row,
        )
    return table


def _write_parquet(table: pa.Table, product: Product, path: Path) -> None:
    facts = {str(k): str(v) for k, v in global_attributes(product).items() if k != "Conventions"}
    metadata = {**(table.schema.metadata or {}), b"appa": json.dumps(facts).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="zstd")


def _check_parquet(table: pa.Table, path: Path) -> None:
    found = pq.read_table(path)
    if found.num_rows != table.num_rows or found.column_names != table.column_names:
        raise StorageError(
            "Expected the feedback as written; got another number of rows or columns."
        )
    for name in table.column_names:
        kind = table.schema.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not found[name].cast(plain).equals(table[name].cast(plain)):
            if not _equal_but_nan(found[name], table[name]):
                raise StorageError(f"Expected the feedback as written; column '{name}' differs.")


def _equal_but_nan(a: pa.ChunkedArray, b: pa.ChunkedArray) -> bool:
    """Whether two float columns agree when NaN equals NaN."""
    if not pa.types.is_floating(a.type):
        return False
    return pc.is_null(a).equals(pc.is_null(b)) and np.array_equal(
        a.to_numpy(), b.to_numpy(), equal_nan=True
    )


def write(product: Product, folder: Path) -> Written:
    """Parquet and IODA-like NetCDF; nothing for a job without a window, such as a forecast."""
    if product.window is None:
        return []
    table = checked_feedback(product.feedback)
    parquet = put_file(
        product_file(product, folder, "parquet", "obsfb"),
        partial(_write_parquet, table, product),
        partial(_check_parquet, table),
    )
    ioda = put_file(
        product_file(product, folder, "nc", "obsfb"),
        partial(write_ioda, table, global_attributes(product)),
        partial(check_ioda, table),
    )
    return [(parquet, "feedback"), (ioda, "feedback")]
