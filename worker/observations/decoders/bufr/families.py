"""List the families of BUFR reports and find that of a message.

Families are listed in `BUFR_FAMILIES`; the first that accepts a message decodes it.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import lru_cache

from model.domain.errors import DecodeError
from model.domain.registry import Registry
from worker.observations.decoders.bufr.block import Block
from worker.observations.decoders.bufr.framing import Header
from worker.observations.decoders.bufr.radiances import SOUNDERS, decode_radiances
from worker.observations.decoders.bufr.reports import Reports
from worker.observations.decoders.bufr.surface import (
    decode_buoy,
    decode_gnss,
    decode_scatterometer,
    decode_ship,
    decode_synop,
)
from worker.observations.decoders.bufr.upper_air import (
    decode_aircraft,
    decode_amv,
    decode_profiler,
    decode_temp,
)

__all__ = ["BUFR_FAMILIES", "ReportFamily", "family_of", "unsupported"]


@dataclass(frozen=True)
class ReportFamily:
    """A family of reports.

    Attributes:
        description: One line for the user.
        categories: Data categories (table A) it comes in.
        needs: Groups of elements; the template must hold one of each group.
        decode: Decodes a block into reports.
        empty: Usual reason why a report yields no value.
        by_level: Whether levels without a value have no effect, so that reports with different
            numbers of levels may be decoded together.
    """

    description: str
    categories: Set[int]
    needs: tuple[Set[int], ...]
    decode: Callable[[Block], Reports]
    empty: str = ""
    by_level: bool = False

    def accepts(self, category: int, codes: Set[int]) -> bool:
        """Return whether a message of this category with these elements belongs to the family."""
        return category in self.categories and all(group & codes for group in self.needs)


_SURFACE = frozenset({10_004, 10_051, 12_101, 12_001, 12_004, 11_002, 11_012, 13_011})
_SEA = _SURFACE | {22_042, 22_043, 22_045, 22_049}
_WIND = frozenset({11_001, 11_002, 11_003})
_PRESSURE = frozenset({7_004, 7_009})
_NOTHING = "none of pressure, temperature, humidity, wind, hourly rain and sea temperature"

BUFR_FAMILIES: Registry[ReportFamily] = Registry(
    "BUFR report family",
    "appa.bufr_families",
    ReportFamily,
    gnss=ReportFamily(
        "ground-based GNSS", {0, 1, 8}, ({13_016}, {15_031, 15_079}), decode_gnss,
        "delays without precipitable water",
    ),
    synop=ReportFamily("land stations", {0}, (_SURFACE, {4_003}), decode_synop, _NOTHING),
    ship=ReportFamily("ships", {1}, ({1_011}, _SEA), decode_ship, _NOTHING),
    buoy=ReportFamily(
        "buoys", {1, 31}, ({1_005, 1_087, 1_003, 1_125}, _SEA), decode_buoy,
        f"{_NOTHING}: waves or position alone",
    ),
    profiler=ReportFamily(
        "wind profilers", {2, 6}, ({7_006, 7_007, 7_003, 10_007}, {2_003, 25_032, 2_101}, {11_006},
        {11_001, 11_003}), decode_profiler,
    ),
    temp=ReportFamily(
        "sondes and pilot balloons", {2}, (_PRESSURE, _WIND | {12_101}), decode_temp, by_level=True
    ),
    aircraft=ReportFamily(
        "aircraft", {4}, ({7_010, 7_002, 7_004, 7_007, 10_070}, {12_101, 12_001, 11_002}), decode_aircraft
    ),
    amv=ReportFamily(
        "satellite winds", {5}, ({7_004}, {11_001, 11_003}), decode_amv, "no wind at a pressure"
    ),
    scatterometer=ReportFamily(
        "scatterometer winds", {12}, ({21_102}, {11_012}, {11_011}), decode_scatterometer,
        "no wind was selected in the cell (0 21 102): backscatter alone, or masked over land and ice",
    ),
    radiances=ReportFamily(
        "radiances of sounders", {3, 21}, ({12_063, 12_163}, {2_150, 5_042}, {1_007}, {5_043}),
        decode_radiances, f"no brightness temperature of a channel of {', '.join(SOUNDERS)}",
    ),
)  # fmt: skip


_OTHER_CONTENT = (
    (frozenset({12_063, 12_163, 12_158, 14_044, 14_045, 14_046}), "radiances"),
    (frozenset({15_037, 15_036}), "bending angles or refractivity of radio occultation"),
    (frozenset({21_062, 21_185, 21_183}), "backscatter without winds"),
    (frozenset({22_021, 22_070, 22_074, 22_080, 22_086, 22_069, 22_011}), "waves alone"),
    (frozenset({22_037, 22_038, 22_120, 22_121}), "tides and water levels"),
    (frozenset({22_043, 22_044, 22_064}), "profiles of the ocean"),
    (frozenset({15_001, 15_002, 15_003, 15_011, 15_020, 15_021, 15_023}), "gases and particles"),
    (frozenset({30_001, 30_002, 30_004, 21_001}), "radar pictures"),
    (frozenset({12_080, 12_081, 10_050, 13_060}), "land and sea surface from satellites"),
    (frozenset({14_001, 14_011, 14_012, 14_017, 14_028}), "radiation"),
    (frozenset({13_023, 13_021, 13_022, 13_011}), "precipitation over other times than an hour"),
    (frozenset({20_058, 20_062, 20_008}), "weather and clouds alone"),
)
"""Content of messages without a known variable, by characteristic elements; the first match counts."""


@lru_cache(maxsize=1024)
def family_of(category: int, codes: frozenset[int]) -> str | None:
    """Return the name of the family of a message, or None."""
    for name, family in BUFR_FAMILIES.items():
        if family.accepts(category, codes):
            return name
    return None


def unsupported(header: Header, codes: Set[int], kind: str = "") -> DecodeError:
    """Return the error for a message of no family, which says what it contains."""
    first = ", ".join(f"{code:06d}" for code in header.descriptors[:6])
    content = next((words for some, words in _OTHER_CONTENT if some & codes), "other content")
    return DecodeError(
        f"Expected reports of one of {', '.join(BUFR_FAMILIES)}; got {content} "
        f"({kind or f'descriptors {first}'} of category {header.category}).",
        reason="unsupported_template",
    )
