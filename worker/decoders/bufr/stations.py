"""Who reported: one identifier per report, the most stable one there is."""

from collections.abc import Callable

import numpy as np

from worker.decoders.bufr.block import Block

__all__ = ["aircraft_id", "station_id", "satellite_id"]

Texts = list[str]


def station_id(block: Block) -> Texts:
    """WIGOS id; WMO block and station; ship, platform or buoy; national id; name; or "unknown"."""
    return _first_given(
        block, _wigos, _wmo_number, _text(1_011), _platform, _buoy, _national, _text(1_018),
        _text(1_015), _text(1_019),
    )  # fmt: skip


def aircraft_id(block: Block) -> Texts:
    """Registration (or its anonymous form), tail number, flight number; or "unknown"."""
    return _first_given(block, _text(1_008), _text(1_110), _text(1_006), _text(1_011))


def satellite_id(block: Block) -> Texts:
    """Satellite identifier of common code table C-5: `sat004`."""
    numbers = block.first(1_007)
    return [f"sat{int(n):03d}" if n == n else "unknown" for n in numbers]


def _first_given(block: Block, *sources: Callable[[Block], Texts]) -> Texts:
    result: Texts = [""] * len(block)
    for source in sources:
        found = source(block)
        if found:
            result = [a or b for a, b in zip(result, found, strict=True)]
        if all(result):
            return result
    return [text or "unknown" for text in result]


def _text(code: int) -> Callable[[Block], Texts]:
    return lambda block: block.texts.get(code, [])


def _numbers(block: Block, *codes: int) -> list[np.ndarray] | None:
    """First occurrences of all elements, or None if the layout lacks one."""
    if not all(block.layout.has(code) for code in codes):
        return None
    return [block.first(code) for code in codes]


def _wigos(block: Block) -> Texts:
    parts = _numbers(block, 1_125, 1_126, 1_127)
    local = block.texts.get(1_128)
    if parts is None or not local:
        return []
    return [
        f"{int(a)}-{int(b)}-{int(c)}-{text}" if text and a == a and b == b and c == c else ""
        for a, b, c, text in zip(*parts, local, strict=True)
    ]


def _wmo_number(block: Block) -> Texts:
    parts = _numbers(block, 1_001, 1_002)
    if parts is None:
        return []
    return [
        f"{int(a):02d}{int(b):03d}" if a == a and b == b and (a, b) != (0, 0) else ""
        for a, b in zip(*parts, strict=True)
    ]


def _platform(block: Block) -> Texts:
    parts = _numbers(block, 1_087)
    return [] if parts is None else [f"{int(n)}" if n == n else "" for n in parts[0]]


def _buoy(block: Block) -> Texts:
    """Buoy number 0 01 005, with the region and sub-area before it where it has three digits."""
    if (parts := _numbers(block, 1_005)) is None:
        return []
    numbers = parts[0]
    regions, areas = block.first(1_003), block.first(1_020)
    return [
        ""
        if n != n
        else f"{int(r)}{int(a)}{int(n):03d}"
        if n < 1_000 and r == r and a == a
        else f"{int(n)}"
        for n, r, a in zip(numbers, regions, areas, strict=True)
    ]


def _national(block: Block) -> Texts:
    state, text = block.first(1_101), block.texts.get(1_102)
    number = block.first(1_102) if text is None else None
    if number is not None:
        text = [f"{int(n)}" if n == n else "" for n in number]
    return [
        f"{int(s)}-{t}" if s == s and t else "" for s, t in zip(state, text or [], strict=False)
    ]
