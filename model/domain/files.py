"""Write files atomically and durably, hash them, read YAML and JSON, and return the installed version.

A file appears under its name whole or not at all, and survives a power cut once the call returns:
its content is flushed to disk under a temporary name in the same folder, renamed, and the folder
is flushed as well.
"""

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError

from model.domain.errors import AppaError, ConfigurationError

__all__ = [
    "RepeatedName",
    "code_version",
    "distinct_names",
    "file_digest",
    "move_into_place",
    "open_atomic",
    "read_yaml",
    "read_yaml_model",
    "replaced_file",
    "sync_file",
    "sync_folder",
    "write_atomic",
]

Model = TypeVar("Model", bound=BaseModel)


@lru_cache(maxsize=1)
def code_version() -> str:
    """Return the version of the installed distribution; `0+unknown` without an installation."""
    try:
        return version("appa-service")
    except PackageNotFoundError:
        return "0+unknown"


# -- writing


def sync_file(path: Path) -> None:
    """Flush the content of a closed file to disk.

    Raises:
        OSError: If the disk is full or broken; writes that were only buffered fail here.
    """
    _sync(path, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk, after a file in it was created, renamed or removed."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_into_place(temporary: Path, path: Path, *, exclusive: bool = False) -> None:
    """Flush a finished file to disk and give it its final name in one step.

    Arguments:
        temporary: The file, closed or unbuffered; on the same file system as `path`.
        path: Its final name, in a folder that exists.
        exclusive: Refuse to replace a file that exists.

    Raises:
        FileExistsError: If `exclusive` is set and the name is taken.
        OSError: If the disk is full; `path` is unchanged.
    """
    sync_file(temporary)
    if exclusive:
        os.link(temporary, path)  # unlike a rename, fails if the name is taken
        temporary.unlink()
    else:
        temporary.replace(path)
    sync_folder(path.parent)


@contextmanager
def replaced_file(path: Path, *, exclusive: bool = False) -> Iterator[Path]:
    """Yield a temporary name for a library to write to; move the file to `path` on success.

    The temporary name is in the same folder, is hidden and has the same suffix as `path`. When the
    block raises, the temporary file is removed and `path` is unchanged.

    Raises:
        FileExistsError: If `exclusive` is set and `path` exists at the end.
        OSError: If the disk is full.
    """
    temporary = path.with_name(f".part-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        move_into_place(temporary, path, exclusive=exclusive)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_atomic(path: Path, *, exclusive: bool = False, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Yield a binary stream whose content becomes the file `path` when the block succeeds.

    Arguments:
        path: The final name, in a folder that exists.
        exclusive: Refuse to replace a file that exists.
        mode: Permissions of the file before the umask applies; 0o600 for secrets.

    Raises:
        FileExistsError: If `exclusive` is set and `path` exists at the end.
        OSError: If the disk is full; `path` is unchanged.
    """
    with replaced_file(path, exclusive=exclusive) as temporary:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, mode), "w+b") as stream:
            yield stream


def write_atomic(
    path: Path, content: str | bytes, *, exclusive: bool = False, mode: int = 0o666
) -> None:
    """Write a whole file, text as UTF-8; see `open_atomic`."""
    with open_atomic(path, exclusive=exclusive, mode=mode) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


# -- reading


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class RepeatedName(ValueError):
    """A JSON object that has a name more than once."""


def distinct_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these names and values; the `object_pairs_hook` of `json.loads`.

    Without it the last of several values of a name would be taken, and the others lost.

    Raises:
        RepeatedName: Naming the one repeated most.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise RepeatedName(f"the name {ascii(name[:100])} is repeated in an object")
    return found


class _DistinctLoader(yaml.SafeLoader):
    """A safe loader that refuses names that repeat in a mapping, of which PyYAML keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            problem = f"the names {', '.join(map(repr, repeated[:5]))} repeat in a mapping"
            raise ConstructorError(None, None, problem, node.start_mark)
        return node


def read_yaml(path: Path, error: type[AppaError] = ConfigurationError) -> dict[str, Any]:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Arguments:
        path: UTF-8 text.
        error: Type of the error to raise.

    Raises:
        AppaError: Of type `error`, if the file is absent, unreadable, not YAML or not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _DistinctLoader)  # noqa: S506 (a safe loader)
    except (OSError, ValueError, yaml.YAMLError) as problem:  # ValueError: a date that is none
        raise error(f"Expected readable YAML in {path}; {problem}.", file=str(path)) from problem
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise error(f"Expected a mapping in {path}; got {type(values).__name__}.", file=str(path))
    return values


def read_yaml_model(
    path: Path,
    model: type[Model],
    what: str,
    *,
    hint: str = "",
    error: type[AppaError] = ConfigurationError,
) -> Model:
    """Return the content of a YAML file as an instance of a pydantic model.

    Arguments:
        path: UTF-8 text, a mapping; an empty file takes all defaults.
        model: Type of the content.
        what: Names the content in error messages, such as "retention rules".
        hint: A sentence that ends the message of content that does not fit.
        error: Type of the error to raise.

    Raises:
        AppaError: Of type `error`, naming each field that does not fit.
    """
    values = read_yaml(path, error)
    try:
        return model.model_validate(values)
    except (ValidationError, AppaError) as problem:
        text = _faults(problem) if isinstance(problem, ValidationError) else str(problem)
        message = f"Expected {what} in {path}; {text}. {hint}".rstrip()
        raise error(message, file=str(path)) from problem


def _faults(error: ValidationError) -> str:
    """List the fields that do not fit, each with its fault."""
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'file'}: "
        f"{fault['msg'].removeprefix('Value error, ').rstrip('.')}"
        for fault in error.errors(include_url=False)
    )
