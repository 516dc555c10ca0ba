"""Faults of single rows of a table, by column and row."""

import numpy as np

from worker.decoders.report import DecodeReport

__all__ = ["RowFaults"]


class RowFaults:
    """The first fault of each row."""

    def __init__(self, length: int) -> None:
        self.reason = np.full(length, "", dtype=object)
        self.detail = np.full(length, "", dtype=object)

    def add(
        self, rows: np.ndarray, column: str, reason: str, got: np.ndarray | None = None
    ) -> None:
        fresh = np.flatnonzero(rows & (self.reason == ""))
        self.reason[fresh] = reason
        for row in fresh[:1000]:
            what = "" if got is None else f": got {got[row]!r}"
            self.detail[row] = f"column '{column}', row {row + 1}{what}"

    def report(self, report: DecodeReport) -> np.ndarray:
        """Counts the faulty rows; returns the mask of the others."""
        for row in np.flatnonzero(self.reason != ""):
            report.reject(self.reason[row], detail=self.detail[row], report=int(row))
        return self.reason == ""
