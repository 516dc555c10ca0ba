"""The report families: one line each, the first that accepts a message decodes it."""

from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import lru_cache

from model.domain.registry import Registry
from worker.decoders.bufr.aircraft import decode_aircraft
from worker.decoders.bufr.amv import decode_amv
from worker.decoders.bufr.block import Block, Reports
from worker.decoders.bufr.buoy import decode_buoy
from worker.decoders.bufr.gnss import decode_gnss
from worker.decoders.bufr.profiler import decode_profiler
from worker.decoders.bufr.scatterometer import decode_scatterometer
from worker.decoders.bufr.ship import decode_ship
from worker.decoders.bufr.synop import decode_synop
from worker.decoders.bufr.temp import decode_temp

__all__ = ["BUFR_FAMILIES", "Family", "family_of"]


@dataclass(frozen=True)
class Family:
    """A family of reports.

    Attributes:
        description: One line for the user.
        categories: Data categories (table A) it comes in.
        needs: Groups of elements; the template must hold one of each group.
        decode: Makes reports of a block.
    """

    description: str
    categories: Set[int]
    needs: tuple[Set[int], ...]
    decode: Callable[[Block], Reports]

    def accepts(self, category: int, codes: Set[int]) -> bool:
        """Whether a message of this category with these elements belongs to the family."""
        return category in self.categories and all(group & codes for group in self.needs)


_SURFACE = frozenset({10_004, 10_051, 12_101, 12_001, 12_004, 11_002, 11_012, 13_011})
_SEA = _SURFACE | {22_042, 22_043, 22_045, 22_049}
_WIND = frozenset({11_001, 11_002, 11_003})
_PRESSURE = frozenset({7_004, 7_009})

BUFR_FAMILIES: Registry[Family] = Registry(
    "BUFR report family",
    gnss=Family("ground-based GNSS", {0, 1, 8}, ({13_016}, {15_031, 15_079}), decode_gnss),
    synop=Family("land stations", {0}, (_SURFACE, {4_003}), decode_synop),
    ship=Family("ships", {1}, ({1_011}, _SEA), decode_ship),
    buoy=Family("buoys", {1, 31}, ({1_005, 1_087, 1_003, 1_125}, _SEA), decode_buoy),
    profiler=Family(
        "wind profilers", {2, 6}, ({7_006, 7_007, 7_003, 10_007}, {2_003, 25_032, 2_101}, {11_006},
        {11_001, 11_003}), decode_profiler,
    ),
    temp=Family("sondes and pilot balloons", {2}, (_PRESSURE, _WIND | {12_101}), decode_temp),
    aircraft=Family(
        "aircraft", {4}, ({7_010, 7_002, 7_004, 10_070}, {12_101, 12_001, 11_002}), decode_aircraft
    ),
    amv=Family("satellite winds", {5}, ({7_004}, {11_001, 11_003}), decode_amv),
    scatterometer=Family(
        "scatterometer winds", {12}, ({21_102}, {11_012}, {11_011}), decode_scatterometer
    ),
)  # fmt: skip


@lru_cache(maxsize=1024)
def family_of(category: int, codes: frozenset[int]) -> str | None:
    """Name of the family of a message, or None."""
    for name, family in BUFR_FAMILIES.items():
        if family.accepts(category, codes):
            return name
    return None
