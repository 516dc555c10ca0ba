"""Look up elements in eccodes' tables: their name, and how they are stored.

The lookup reads the keys of a message without data that contains each element once. Keys for a whole
template (`expandedAbbreviations`, `expandedOriginalWidths` and the like) would make eccodes keep 44 MB
of text fields for each version of the tables; this needs 0.2 MB.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import eccodes

from worker.observations.decoders.bufr.framing import Header, is_local

__all__ = ["Element", "TableVersion", "element_names", "elements_of"]


class TableVersion(NamedTuple):
    """The tables in which elements are looked up; only elements of a centre depend on the last three."""

    master: int
    local: int = 0
    centre: int = 0
    subcentre: int = 0

    @classmethod
    def of(cls, header: Header) -> "TableVersion":
        """Return the tables that a message names."""
        if not header.has_local_tables:
            return cls(header.master_version)
        return cls(header.master_version, header.local_version, header.centre, header.subcentre)


class Element(NamedTuple):
    """An element of BUFR table B.

    Attributes:
        name: eccodes' key.
        width: Bits.
        scale, reference: Value = (number + reference) x 10^-scale.
        units: Units in the table; `CCITT IA5` for texts.
    """

    name: str
    width: int
    scale: int
    reference: int
    units: str

    @property
    def is_text(self) -> bool:
        return self.units.startswith("CCITT")


_FIRST_OPERATOR = 64_000
_UNLISTED = {31_021: Element("associatedFieldSignificance", 6, 0, 0, "CODE TABLE")}
"""Elements that eccodes exposes only as attributes of others."""
_known: dict[tuple[TableVersion, int], Element | None] = {}
_KEPT = 20_000


def elements_of(codes: Iterable[int], tables: TableVersion) -> dict[int, Element]:
    """Return elements by descriptor, without those that the tables lack.

    Results are cached in the process.

    Arguments:
        codes: Descriptors FXXYYY; operators and sequences are no elements and left out.
        tables: Where to look.
    """
    wanted = {code for code in codes if code < _FIRST_OPERATOR}
    unknown = sorted(code for code in wanted if (tables, code) not in _known)
    if unknown:
        if len(_known) > _KEPT:
            _known.clear()
        _known.update({(tables, code): _UNLISTED.get(code) for code in unknown})
        for code, element in _ask(unknown, tables):
            _known[tables, code] = element
    found = {code: _known.get((tables, code)) for code in wanted}
    return {code: element for code, element in found.items() if element is not None}


def element_names(codes: Iterable[int], version: int) -> dict[int, str]:
    """Return the names of elements of a version of the WMO tables.

    Local elements, and those that the version lacks, have none.
    """
    common = [code for code in codes if not is_local(code)]
    found = elements_of(common, TableVersion(version))
    return {code: element.name for code, element in found.items()}


def _ask(codes: list[int], tables: TableVersion) -> Iterator[tuple[int, Element]]:
    """Yield the elements in the tables; if one is missing, look them up one by one."""
    handle = eccodes.codes_bufr_new_from_samples("BUFR4")
    try:
        eccodes.codes_set(handle, "masterTablesVersionNumber", tables.master)
        eccodes.codes_set(handle, "localTablesVersionNumber", tables.local)
        eccodes.codes_set(handle, "bufrHeaderCentre", tables.centre)
        eccodes.codes_set(handle, "bufrHeaderSubCentre", tables.subcentre)
        eccodes.codes_set_array(handle, "unexpandedDescriptors", codes)
        yield from list(_listed(handle))
    except eccodes.CodesInternalError:
        for code in codes if len(codes) > 1 else ():
            yield from _ask([code], tables)
    finally:
        eccodes.codes_release(handle)


def _listed(handle: int) -> Iterator[tuple[int, Element]]:
    """Yield the elements of a message as eccodes lists them."""
    iterator = eccodes.codes_bufr_keys_iterator_new(handle)
    try:
        while eccodes.codes_bufr_keys_iterator_next(iterator):
            key = eccodes.codes_bufr_keys_iterator_get_name(iterator)
            if key.startswith("#") and "->" not in key:
                code, width, scale, reference = (
                    eccodes.codes_get_long(handle, f"{key}->{name}")
                    for name in ("code", "width", "scale", "reference")
                )
                units = eccodes.codes_get_string(handle, f"{key}->units")
                name = key.rpartition("#")[2]
                yield code, Element(name, width, scale, reference, units)
    finally:
        eccodes.codes_bufr_keys_iterator_delete(iterator)
