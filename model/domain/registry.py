"""Look parts up by name: built-in ones, and those that extensions declare as entry points.

No folder is scanned. A registry with a group is open: a distribution that declares an entry point
in that group, such as

    [project.entry-points."appa.samplers"]
    heun = "my_appa.heun:build"

adds a part under that name wherever the registry is read. Entry points are loaded once, when the
registry is first asked, and never while this package is being imported, so that an extension may
import whatever it needs. An extension that cannot be used stops the process with an error that
names it: a part that is silently missing would change results.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from threading import RLock
from typing import Any, Generic, TypeVar

from model.domain.errors import ConfigurationError, UnknownName

__all__ = ["ExtensionError", "Registry", "installed_extensions"]

T = TypeVar("T")


class ExtensionError(ConfigurationError):
    """An entry point whose part cannot be used: it fails to import, clashes, or is no such part."""


@cache
def _declared(group: str) -> tuple[EntryPoint, ...]:
    """Entry points of a group in order of their names, whatever order they were installed in."""
    return tuple(sorted(entry_points(group=group), key=lambda entry: entry.name))


@cache
def installed_extensions() -> dict[str, str]:
    """Return the distributions that add parts to any registry, with their versions."""
    return {
        distribution.name: distribution.version
        for distribution in distributions()
        if any(entry.group.startswith("appa.") for entry in distribution.entry_points)
    }


class Registry(Mapping[str, T], Generic[T]):
    """Named parts of one kind, in order: the built-in ones first, then extensions by name.

    Arguments:
        kind: What the parts are, for error messages ("observation operator").
        group: Entry points that add parts, such as `appa.operators`; None for a closed registry.
        part: The class of the parts, or a runtime-checkable protocol, that parts of extensions must
            be instances of; `object` for any.
        unique: Attributes, beside the name, that no two parts may share.
        parts: The built-in parts by name.
    """

    def __init__(
        self,
        kind: str,
        group: str | None = None,
        part: Any = object,
        unique: tuple[str, ...] = (),
        /,
        **parts: T,
    ) -> None:
        self.kind = kind
        self.group = group
        self._part = part
        self._unique = unique
        self._parts = parts
        self._complete = group is None
        self._lock = RLock()

    def __getitem__(self, name: str) -> T:
        """Return the part called `name`.

        Raises:
            UnknownName: If there is none; the message lists the known ones.
            ExtensionError: If an extension cannot be used.
        """
        try:
            return self._all[name]
        except KeyError:
            known = ", ".join(sorted(self._parts))
            raise UnknownName(
                f"Unknown {self.kind} '{name}'. Known: {known}.",
                name=name,
                known=sorted(self._parts),
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def _all(self) -> dict[str, T]:
        if not self._complete:
            with self._lock:
                if not self._complete:
                    # A new dictionary: other threads may be iterating over the built-in parts.
                    self._parts = self._parts | self._extensions()
                    self._complete = True
        return self._parts

    def _extensions(self) -> dict[str, T]:
        found: dict[str, T] = {}
        for entry in _declared(self.group or ""):
            if entry.name in self._parts or entry.name in found:
                raise self._error(entry, f"the name of the {self.kind} is taken")
            part = self._load(entry)
            for name, other in {**self._parts, **found}.items():
                for attribute in self._unique:
                    value = getattr(part, attribute)
                    if value == getattr(other, attribute):
                        raise self._error(entry, f"'{name}' has the same {attribute}, {value}")
            found[entry.name] = part
        return found

    def _load(self, entry: EntryPoint) -> T:
        try:
            part: T = entry.load()
        except Exception as error:
            raise self._error(entry, f"{type(error).__name__}: {error}") from error
        if not isinstance(part, self._part):
            wanted = getattr(self._part, "__name__", str(self._part))
            raise self._error(entry, f"expected a {wanted}; got {type(part).__name__}")
        own = getattr(part, "name", getattr(part, "id", entry.name))
        if own != entry.name:
            raise self._error(entry, f"the part calls itself '{own}'")
        return part

    def _error(self, entry: EntryPoint, reason: str) -> ExtensionError:
        source = f" of {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        return ExtensionError(
            f"Expected a usable {self.kind} '{entry.name}' ({entry.value}){source} in the entry "
            f"points '{self.group}'; {reason}. Mend or uninstall the extension.",
            name=entry.name,
            group=self.group,
            value=entry.value,
            distribution=entry.dist.name if entry.dist is not None else None,
        )
