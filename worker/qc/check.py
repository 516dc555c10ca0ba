"""What a check is: rows in, a mask of rows to reject out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from model.domain.observations import QC_FLAGS
from worker.columns import BoolArray
from worker.qc.context import QCContext

__all__ = ["Check", "CheckFunction", "Stage", "Transform"]

Stage = Literal["pre", "window", "background", "select"]
"""`pre`: after decoding, one batch. `window`: all batches of a window. `background`: with the
background's equivalents. `select`: what is used of what is good."""

CheckFunction = Callable[[pa.Table, QCContext], BoolArray]
Transform = Callable[[pa.Table, QCContext], pa.Table]


@dataclass(frozen=True)
class Check:
    """One check of the list in `checks.py`.

    Attributes:
        name: Key in `qc.yaml`.
        outcome: What `rejected_by` says, a name of `QC_FLAGS`.
        stage: When it runs.
        reject: The rows to reject, with shape (rows,).
        prepare: Changes the rows that stay or appends rows (reduction in height,
            superobservations); `reject` judges the rows as they were before.
    """

    name: str
    outcome: str
    stage: Stage
    reject: CheckFunction
    prepare: Transform | None = None

    def __post_init__(self) -> None:
        QC_FLAGS[self.outcome]
