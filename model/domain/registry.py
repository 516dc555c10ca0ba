"""Look parts up by name, with a good error: explicit names, no folder scanning."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from model.domain.errors import UnknownName

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Named parts of one kind.

    Arguments:
        kind: What the parts are, for the error text ("observation operator").
        parts: The parts by name.
    """

    def __init__(self, kind: str, /, **parts: T) -> None:
        self.kind = kind
        self._parts = parts

    def __getitem__(self, name: str) -> T:
        try:
            return self._parts[name]
        except KeyError:
            known = ", ".join(sorted(self._parts))
            raise UnknownName(
                f"Unknown {self.kind} '{name}'. Known: {known}.",
                name=name,
                known=sorted(self._parts),
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
