"""Sections 1 and 3 of a message, read without a library so that nothing is unpacked unseen."""

from dataclasses import dataclass
from functools import lru_cache

from model.domain.errors import DecodeError

__all__ = ["Header", "descriptor_count", "read_header"]


@dataclass(frozen=True, slots=True)
class Header:
    """What a message says of itself.

    Attributes:
        edition, master_table, centre, subcentre: As in section 1.
        update_sequence: 0 for the original message.
        category: Data category (table A).
        subcategory: International split of the category (edition 4), else 255.
        master_version, local_version: Versions of the tables.
        subsets: Number of reports.
        compressed: Whether values are stored element by element.
        descriptors: Unexpanded descriptors as integers FXXYYY.
        data_at: First byte of the values in section 4.
        data_bytes: Bytes of the values.
    """

    edition: int
    master_table: int
    centre: int
    subcentre: int
    update_sequence: int
    category: int
    subcategory: int
    master_version: int
    local_version: int
    subsets: int
    compressed: bool
    descriptors: tuple[int, ...]
    data_at: int
    data_bytes: int

    def data(self, message: bytes) -> bytes:
        """The packed values."""
        return message[self.data_at : self.data_at + self.data_bytes]

    @property
    def template(self) -> tuple:
        """Key of everything that decides the expansion."""
        return (
            self.descriptors,
            self.edition,
            self.master_table,
            self.master_version,
            self.local_version,
            self.centre,
            self.subcentre,
        )


def _bad(detail: str) -> DecodeError:
    return DecodeError(
        f"Expected sections that fit into the message; {detail}.", reason="bad_frame"
    )


def _section(message: bytes, at: int, shortest: int, name: str) -> int:
    length = int.from_bytes(message[at : at + 3], "big")
    if length < shortest or at + length > len(message) - 4:
        raise _bad(f"section {name} at byte {at} declares {length} of {len(message)} bytes")
    return length


@lru_cache(maxsize=1024)
def _descriptors(packed: bytes) -> tuple[int, ...]:
    codes = []
    for high, low in zip(packed[::2], packed[1::2], strict=False):
        codes.append((high >> 6) * 100_000 + (high & 63) * 1_000 + low)
    return tuple(codes)


def read_header(message: bytes) -> Header:
    """Sections 1 and 3 of a framed message of edition 2, 3 or 4.

    Raises:
        DecodeError: With reason `bad_frame` if section lengths contradict the total length.
    """
    edition = message[7]
    at = 8
    length = _section(message, at, 18 if edition == 4 else 17, "1")
    s = message[at : at + length]
    if edition == 4:
        centre, subcentre = s[4] * 256 + s[5], s[6] * 256 + s[7]
        sequence, optional, category = s[8], s[9] & 128, s[10]
        subcategory, master, local = s[11], s[13], s[14]
    else:
        centre, subcentre, sequence, optional = s[5], s[4], s[6], s[7] & 128
        category, subcategory, master, local = s[8], 255, s[10], s[11]
    at += length
    if optional:
        at += _section(message, at, 4, "2")
    length = _section(message, at, 9, "3")
    subsets = int.from_bytes(message[at + 4 : at + 6], "big")
    flags = message[at + 6]
    # A section of even length in editions 2 and 3 is padded with one byte.
    packed = message[at + 7 : at + length]
    codes = _descriptors(packed[: len(packed) // 2 * 2])
    at += length
    data_bytes = _section(message, at, 4, "4")
    if not codes or not subsets:
        raise _bad(f"{subsets} reports and {len(codes)} descriptors declared")
    return Header(
        edition, s[3], centre, subcentre, sequence, category, subcategory, master, local,
        subsets, bool(flags & 64), codes, at + 4, data_bytes - 4,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def descriptor_count(codes: tuple[int, ...]) -> int:
    """Descriptors after fixed replications, sequences counted as one: the least there can be.

    Nested fixed replications multiply, which makes a few bytes of section 3 expand without end;
    so this is checked before any library expands them.
    """
    total, at = 0, 0
    while at < len(codes):
        kind, span, times = codes[at] // 100_000, codes[at] // 1_000 % 100, codes[at] % 1_000
        if kind == 1 and times:
            inner = codes[at + 1 : at + 1 + span]
            total += times * descriptor_count(inner)
            at += 1 + span
        else:
            total += 1
            at += 1
    return total
