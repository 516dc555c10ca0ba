"""Read the tables of the common templates before the first message, from messages made here.

eccodes parses its definitions and tables at first use, and `Template` learns from the first messages
how the elements of a layout are stored, which takes two hundred times as long as a later message. The
process that forks decoding children does it once for all of them. It must not read untrusted data, so
the messages are generated here, with a time, a position and a temperature.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import eccodes

from model.domain.errors import DecodeError
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.bufr.decode import decode_bytes

__all__ = ["COMMON", "VERSIONS", "CommonTemplate", "rehearse", "small_message", "warm_up"]


@dataclass(frozen=True)
class CommonTemplate:
    """A template that is common in international exchange.

    Attributes:
        descriptors: Unexpanded.
        category: Data category (table A).
        counts: Delayed replication counts by width: `Short` (1 bit), `` (8), `Extended` (16).
    """

    descriptors: tuple[int, ...]
    category: int
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


COMMON = (
    CommonTemplate((301_150, 307_080), 0, {"": (0, 0)}),
    CommonTemplate((307_080,), 0, {"": (0, 0)}),
    CommonTemplate((307_096,), 0, {"": (0, 0, 0)}),
    CommonTemplate((307_091,), 0),
    CommonTemplate((307_089,), 0),
    CommonTemplate((308_009,), 1, {"": (0,)}),
    CommonTemplate((315_008,), 1, {"Short": (0, 1, 0, 0, 0, 0, 0, 0)}),
    CommonTemplate((315_009,), 1, {"Short": (0, 1, 1, 1), "": (0,)}),
    CommonTemplate((309_052,), 2, {"Extended": (1,), "": (0,)}),
    CommonTemplate((309_057,), 2, {"Extended": (1,), "": (0,)}),
    CommonTemplate((309_050,), 2, {"Extended": (1,), "": (0,)}),
    CommonTemplate((311_010,), 4, {"Short": (0,) * 6, "": (0, 0)}),
    CommonTemplate((311_001,), 4),
)
VERSIONS = (36,)
"""Master tables read beforehand; others are read by each child that needs them."""

_VALUES: Mapping[str, float] = {
    "#1#blockNumber": 1, "#1#stationNumber": 1, "#1#year": 2026, "#1#month": 1, "#1#day": 1,
    "#1#hour": 0, "#1#minute": 0, "#1#latitude": 0.0, "#1#longitude": 0.0,
    "#1#airTemperature": 273.15, "#1#pressure": 50_000,
}  # fmt: skip
_CONTEXT = DecodeContext(batch_id="warm-up")


def warm_up(
    templates: Iterable[CommonTemplate] = COMMON, versions: Iterable[int] = VERSIONS
) -> int:
    """Decode small messages of `templates`; return the number of known templates.

    A template that is missing from the installed tables is skipped.
    """
    known = 0
    for version in versions:
        for template in templates:
            try:
                for subsets in (1, 2):
                    message = small_message(template, version, subsets)
                    for _ in range(3):  # opened, learnt from, read with what was learnt
                        decode_bytes(message, _CONTEXT).report.model_dump(mode="json")
            except (eccodes.CodesInternalError, DecodeError):
                continue
            known += 1
    return known


def rehearse() -> None:
    """Decode a small message, to initialise what a new process needs."""
    message = small_message(COMMON[0], VERSIONS[0])
    decode_bytes(message, _CONTEXT).report.model_dump(mode="json")


def small_message(template: CommonTemplate, version: int, subsets: int = 1) -> bytes:
    """Return a message of reports with a time, a place, and a temperature if they can hold one.

    Several reports are compressed.
    """
    handle = eccodes.codes_bufr_new_from_samples("BUFR4")
    try:
        header = {
            "masterTablesVersionNumber": version,
            "localTablesVersionNumber": 0,
            "dataCategory": template.category,
            "numberOfSubsets": subsets,
            "compressedData": int(subsets > 1),
        }
        for key, value in header.items():
            eccodes.codes_set(handle, key, value)
        for width, counts in template.counts.items():
            key = f"input{width}DelayedDescriptorReplicationFactor"
            eccodes.codes_set_array(handle, key, list(counts))
        eccodes.codes_set_array(handle, "unexpandedDescriptors", list(template.descriptors))
        for key, number in _VALUES.items():
            with suppress(eccodes.KeyValueNotFoundError):
                eccodes.codes_set(handle, key, number)
        eccodes.codes_set(handle, "pack", 1)
        return bytes(eccodes.codes_get_message(handle))
    finally:
        eccodes.codes_release(handle)
