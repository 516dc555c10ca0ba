"""The one way to reject rows: the first check keeps its name and number, nothing is dropped."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.domain.observations import QCFlag
from worker.columns import BoolArray, kept

__all__ = ["reject"]


def reject(table: pa.Table, rows: BoolArray, flag: QCFlag) -> pa.Table:
    """The table with `rejected_by` and `qc_flag` set on `rows` that no check rejected before."""
    fresh = pa.array(np.asarray(rows, dtype=bool) & kept(table))
    if not pc.any(fresh, min_count=0).as_py():
        return table
    names = table.schema.field("rejected_by")
    text = pc.if_else(fresh, flag.name, table["rejected_by"].cast(pa.string()))
    number = pc.if_else(fresh, pa.scalar(flag.number, pa.uint8()), table["qc_flag"])
    table = table.set_column(
        table.schema.get_field_index("rejected_by"), names, text.cast(names.type)
    )
    return table.set_column(
        table.schema.get_field_index("qc_flag"), table.schema.field("qc_flag"), number
    )
