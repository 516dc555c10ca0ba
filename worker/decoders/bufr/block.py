"""Reports of equal layout, from one or many messages, as one matrix; and what a family makes of it."""

from dataclasses import dataclass, field

import numpy as np

from worker.decoders.bufr.layout import Layout
from worker.decoders.bufr.sections import Header

__all__ = ["Block", "Reports", "Values"]


@dataclass(frozen=True)
class Block:
    """Reports that share a layout.

    Attributes:
        header: Sections 1 and 3 of the first message (template and category are those of all).
        layout: Positions of the elements.
        values: Shape (N, layout.size), NaN where missing.
        texts: Identifying texts by descriptor, each of N.
    """

    header: Header
    layout: Layout
    values: np.ndarray
    texts: dict[int, list[str]]

    def __len__(self) -> int:
        return len(self.values)

    def at(self, position: int) -> np.ndarray:
        """Values at a position, shape (N,); NaN for position -1."""
        if position < 0:
            return np.full(len(self), np.nan)
        return self.values[:, position]

    def at_each(self, positions: np.ndarray) -> np.ndarray:
        """Values at positions, shape (N, K); NaN where a position is -1."""
        if not len(positions):
            return np.empty((len(self), 0))
        found = self.values[:, positions]
        if (positions < 0).any():
            found[:, positions < 0] = np.nan
        return found

    def first(self, *codes: int) -> np.ndarray:
        """First occurrence of each element in order of preference, later ones where missing."""
        result = np.full(len(self), np.nan)
        for code in codes:
            at = self.layout.first(code)
            if at >= 0:
                result = np.where(np.isnan(result), self.values[:, at], result)
        return result

    def effective(self, position: int, *codes: int) -> np.ndarray:
        """Value of the coordinate or significance in effect at a position; NaN if none."""
        return self.at(self.layout.before(position, *codes) if position >= 0 else -1)

    def suspect(self, positions: np.ndarray) -> np.ndarray:
        """Whether the associated field of each position calls its value bad, shape (N, K).

        The meaning of the field is in 0 31 021: 1 one bit, 1 is suspect; 2 two bits, 2 is highly
        suspect; 6 four bits (GTSPP), 3 and 4 are bad; 8 two bits, 1 is suspect.
        """
        fields = np.where(positions >= 0, self.layout.associated[positions], -1)
        if (fields < 0).all():
            return np.zeros((len(self), len(positions)), dtype=bool)
        meaning = self.first(31_021)[:, None]
        given = self.at_each(fields)
        return (
            ((meaning == 1) & (given == 1))
            | ((meaning == 2) & (given == 2))
            | ((meaning == 6) & ((given == 3) | (given == 4)))
            | ((meaning == 8) & (given == 1))
        )


@dataclass
class Values:
    """Values of one variable in a block; NaN gives no row.

    Attributes:
        variable: An id of the vocabulary.
        value: SI, shape (N,) or (N, K) for K levels.
        vertical_kind: One of VERTICAL_KINDS.
        vertical: Coordinate, same shape; rows need it unless the kind is surface or column.
        preqc: Where the provider's own flags speak against the value, same shape.
        domain: Where the value is not at the height its variable is defined at, same shape.
        time, lat, lon, elevation: Instead of those of the report, broadcastable to `value`.
    """

    variable: str
    value: np.ndarray
    vertical_kind: str = "surface"
    vertical: np.ndarray | None = None
    preqc: np.ndarray | None = None
    domain: np.ndarray | None = None
    time: np.ndarray | None = None
    lat: np.ndarray | None = None
    lon: np.ndarray | None = None
    elevation: np.ndarray | None = None


@dataclass
class Reports:
    """What a family makes of a block of N reports.

    Attributes:
        report_type: Network, one for all.
        station_id: Who reported, N texts.
        time: datetime64[s], NaT where the report has none.
        lat, lon, elevation: Degrees north, degrees east, m; NaN where missing.
        values: The observed quantities.
        platform: Detail, N texts or one for all.
        profile: Whether the rows of a report belong to one profile.
    """

    report_type: str
    station_id: list[str]
    time: np.ndarray
    lat: np.ndarray
    lon: np.ndarray
    elevation: np.ndarray
    values: list[Values]
    platform: list[str] | str = ""
    profile: bool = False
    drop: np.ndarray | None = field(default=None)
