"""Identify who reported and when: the most stable identifier and the valid time of each report."""

from collections.abc import Callable

import numpy as np

from worker.observations.decoders.bufr.block import Block

__all__ = [
    "LAST_POSITION",
    "NOMINAL",
    "aircraft_id",
    "observation_time",
    "satellite_id",
    "seconds_after",
    "station_alias",
    "station_id",
]

Texts = list[str]


def station_id(block: Block) -> Texts:
    """Return the WIGOS id; WMO number; ship, platform or buoy; national id; name; or "unknown"."""
    return _first_given(
        block, _wigos, _wmo_number, _text(1_011), _platform, _buoy, _national, _text(1_018),
        _text(1_015), _text(1_019),
    )  # fmt: skip


def station_alias(block: Block) -> Texts:
    """Return the number or call sign that a report gives besides a WIGOS id; "" where it gives none."""
    wigos = _wigos(block)
    if not any(wigos):
        return [""] * len(block)
    others = _first_given(block, _wmo_number, _text(1_011), _platform, _buoy)
    return [b if a and b != "unknown" else "" for a, b in zip(wigos, others, strict=True)]


def aircraft_id(block: Block) -> Texts:
    """Return the registration (or its anonymous form), tail number, flight number; or "unknown"."""
    return _first_given(block, _text(1_008), _text(1_110), _text(1_006), _text(1_011))


def satellite_id(block: Block) -> Texts:
    """Return the satellite identifier of common code table C-5: `sat004`."""
    found = _spelt(lambda n: f"sat{n:03d}", block.first(1_007))
    return [text or "unknown" for text in found]


def _first_given(block: Block, *sources: Callable[[Block], Texts]) -> Texts:
    result: Texts = [""] * len(block)
    for source in sources:
        found = source(block)
        if found:
            result = [a or b for a, b in zip(result, found, strict=True)]
        if all(result):
            return result
    return [text or "unknown" for text in result]


def _spelt(spell: Callable[..., str], *parts: np.ndarray, where: np.ndarray | None = None) -> Texts:
    """Return identifiers formatted by `spell` from numbers; "" where a number is missing.

    Arguments:
        spell: Formats one identifier from a whole number of each part.
        parts: Numbers, each (N,).
        where: Reports to format, (N,); None for all.
    """
    given = ~np.isnan(np.array(parts)).any(axis=0)
    if where is not None:
        given &= where
    words = map(spell, *(part[given].astype(np.int64).tolist() for part in parts))
    if given.all():
        return list(words)
    found = [""] * len(given)
    for at, word in zip(np.flatnonzero(given).tolist(), words, strict=True):
        found[at] = word
    return found


def _text(code: int) -> Callable[[Block], Texts]:
    return lambda block: block.text(code) or []


def _numbers(block: Block, *codes: int) -> list[np.ndarray] | None:
    """Return the first occurrences of all elements, or None if the layout lacks one."""
    if not all(block.layout.has(code) for code in codes):
        return None
    return [block.first(code) for code in codes]


def _wigos(block: Block) -> Texts:
    parts = _numbers(block, 1_125, 1_126, 1_127)
    local = block.text(1_128)
    if parts is None or not local or not any(local):
        return []
    heads = _spelt(lambda a, b, c: f"{a}-{b}-{c}-", *parts)
    return [head + text if head and text else "" for head, text in zip(heads, local, strict=True)]


def _wmo_number(block: Block) -> Texts:
    parts = _numbers(block, 1_001, 1_002)
    if parts is None:
        return []
    a, b = parts
    return _spelt(lambda a, b: f"{a:02d}{b:03d}", a, b, where=(a != 0) | (b != 0))


def _platform(block: Block) -> Texts:
    parts = _numbers(block, 1_087)
    return [] if parts is None else _spelt(str, parts[0])


def _buoy(block: Block) -> Texts:
    """Return the buoy number 0 01 005, with the region and sub-area before it where it has three digits."""
    if (parts := _numbers(block, 1_005)) is None:
        return []
    numbers = parts[0]
    within = _spelt(
        lambda r, a, n: f"{r}{a}{n:03d}",
        block.first(1_003), block.first(1_020), numbers, where=numbers < 1_000,
    )  # fmt: skip
    return [a or b for a, b in zip(within, _spelt(str, numbers), strict=True)]


def _national(block: Block) -> Texts:
    state, text = block.first(1_101), block.text(1_102)
    number = block.first(1_102) if text is None else None
    if number is not None:
        text = _spelt(str, number)
    states = _spelt(str, state)
    return [f"{s}-{t}" if s and t else "" for s, t in zip(states, text or [], strict=False)]


NOMINAL, LAST_POSITION = 25, 26
_LATEST_TWO_DIGIT = 69
_MAX_SHIFT = 400 * 86_400


def observation_time(block: Block) -> np.ndarray:
    """Return the valid time of each report as datetime64[s], NaT where year, month, day or hour is missing.

    A report may hold several date groups; the nominal one (significance 25) comes first, that of
    the last known position (26, drifting buoys) last. Years of two digits belong to 1970-2069.
    """
    layout = block.layout
    years = layout.where(4_001)
    if not years.size:
        return np.full(len(block), np.datetime64("NaT", "s"))
    times = [_group(block, int(year)) for year in years[:4]]
    meanings = [block.effective(int(year), 8_021) for year in years[:4]]
    result = np.full(len(block), np.datetime64("NaT", "s"))
    for wanted in (
        lambda m: m == NOMINAL,
        lambda m: m != LAST_POSITION,
        lambda m: np.ones(len(m), dtype=bool),
    ):
        for time, meaning in zip(times, meanings, strict=True):
            result = np.where(np.isnat(result) & wanted(meaning), time, result)
    return result


def _group(block: Block, year_at: int) -> np.ndarray:
    """Return the time of the date group that begins at a year."""
    layout = block.layout
    anchor = np.array([year_at])
    following = layout.where(4_001)
    following = following[following > year_at]
    end = int(following[0]) if following.size else len(layout.codes)

    def part(code: int) -> np.ndarray:
        at = int(layout.after_each(anchor, code)[0])
        return block.at(at if at < end else -1)

    year, month, day, hour = block.at(year_at), part(4_002), part(4_003), part(4_004)
    minute, second = np.nan_to_num(part(4_005)), np.nan_to_num(part(4_006))
    year = np.where(year < 100, year + np.where(year > _LATEST_TWO_DIGIT, 1_900, 2_000), year)
    return compose_time(year, month, day, hour, minute, second)


def compose_time(
    year: np.ndarray,
    month: np.ndarray,
    day: np.ndarray,
    hour: np.ndarray,
    minute: np.ndarray,
    second: np.ndarray,
) -> np.ndarray:
    """Return datetime64[s] of calendar parts; NaT where a part is missing or impossible."""
    with np.errstate(invalid="ignore"):
        valid = (
            (year >= 1_900) & (year <= 2_200) & (month >= 1) & (month <= 12)
            & (day >= 1) & (day <= 31) & (hour >= 0) & (hour <= 24)
            & (minute >= 0) & (minute <= 60) & (second >= 0) & (second <= 61)
        )  # fmt: skip
    months = np.where(valid, (year - 1_970) * 12 + month - 1, 0).astype(np.int64)
    first = months.astype("datetime64[M]").astype("datetime64[D]")
    days = np.where(valid, day - 1, 0).astype(np.int64)
    date = first + days.astype("timedelta64[D]")
    # 31 April would silently become 1 May.
    valid &= date.astype("datetime64[M]") == months.astype("datetime64[M]")
    seconds = np.where(valid, hour * 3_600 + minute * 60 + np.floor(second), 0).astype(np.int64)
    time = date.astype("datetime64[s]") + seconds.astype("timedelta64[s]")
    return np.where(valid, time, np.datetime64("NaT", "s"))


def seconds_after(time: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return times (N, 1) moved by seconds (N, K); a missing shift, or one of over a year, counts as 0."""
    with np.errstate(invalid="ignore"):
        shift = np.where(np.abs(seconds) < _MAX_SHIFT, seconds, 0.0)
    return np.asarray(time + np.rint(shift).astype(np.int64).astype("timedelta64[s]"))
