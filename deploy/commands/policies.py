"""Check the policy files of an installation before workers read them: `appa policies check`.

Each file is read by the function with which the workers read it, so what passes here is what they take.
Parameters of quality control are tried on made-up rows besides.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import ValidationError

from deploy.console import DEFAULT_DATA, AsJson, DataFolder, out, print_json
from model.domain.errors import AppaError
from model.domain.files import read_yaml
from worker.contract.layout import Layout
from worker.cycling.policy import frozen_suite, read_policy
from worker.observations.errors import load_errors
from worker.observations.qc.base import load_parameters
from worker.observations.qc.run import try_parameters
from worker.observations.stations import default_list, read_list
from worker.results.retention.plan import read_policy as read_retention
from worker.results.verification.control import read_control_policy

__all__ = ["Fault", "check_policies", "policies_app"]

policies_app = typer.Typer(
    help="Check the policy files of the data folder.", no_args_is_help=True, add_completion=False
)


@dataclass(frozen=True)
class Fault:
    """Something in a policy file that workers would refuse.

    Attributes:
        line: Line of the file, from 1; None if it is not known.
        field: Path of the field, such as `entries.0.error`; empty for the whole file.
        message: What was expected, and what came if that is not `got`.
        got: The value; empty if it is absent, or in `message`.
    """

    line: int | None
    field: str
    message: str
    got: str = ""


@policies_app.callback()
def _group() -> None:
    """Keep `check` a subcommand."""


@policies_app.command("check")
def check(data: DataFolder = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Read every policy file as the workers do, and name each fault with its line.

    For a copy, before it replaces the file: give its folder as `--data`. Exit status 1 if there is a
    fault.
    """
    if not data.is_dir():
        raise typer.BadParameter(f"there is no folder {data}", param_hint="--data")
    found = check_policies(Layout(data))
    if as_json:
        files = [
            {"file": str(path), "present": faults is not None}
            | {"faults": [asdict(one) for one in faults or ()]}
            for path, faults in found.items()
        ]
        print_json({"ok": not any(found.values()), "files": files})
    else:
        for path, faults in found.items():
            for line in _lines(path, faults):
                out.print(line, markup=False, highlight=False, soft_wrap=True)
    if any(found.values()):
        raise typer.Exit(1)


def _lines(path: Path, faults: list[Fault] | None) -> Iterator[str]:
    if not faults:
        yield f"{path}: {'absent' if faults is None else 'ok'}"
    for one in faults or ():
        place = f"{path}:{one.line}" if one.line else str(path)
        got = f"; got {one.got}" if one.got else ""
        yield ": ".join(part for part in (place, one.field, one.message + got) if part)


def check_policies(layout: Layout) -> dict[Path, list[Fault] | None]:
    """Return the faults of each policy file of an installation; None for a file that is absent.

    Arguments:
        layout: The data folder; the list of stations is the one that APPA_STATIONS names.
    """
    readers: dict[Path, Callable[[Path], object]] = {
        layout.root / "errors.yaml": load_errors,
        layout.root / "checks.yaml": load_parameters,
        layout.cycles_file: read_policy,
        layout.retention_file: read_retention,
        layout.verification_file: read_control_policy,
    }
    found = {path: _faults(path, read) for path, read in readers.items()}
    checks = layout.checks_file
    if checks is not None and not found[checks]:
        found[checks] = _tried(checks)
    if found[layout.cycles_file] == []:
        found[layout.cycles_file] = _faults(layout.cycles_file, _challenger, "challenger")
    if stations := default_list():
        found[Path(stations)] = _faults(Path(stations), lambda path: read_list(str(path)))
    return found


def _faults(path: Path, read: Callable[[Path], object], within: str = "") -> list[Fault] | None:
    """Return what a reader refuses in a file.

    Arguments:
        path: The file.
        read: Reads it.
        within: Field that holds what is read; empty for the whole file.
    """
    if not path.exists():
        return None
    try:
        read(path)
    except AppaError as error:
        return list(_located(path, error, within))
    except Exception as error:  # what no reader expects would end a worker's task as well
        return [
            Fault(None, within, f"Expected what workers can read; {type(error).__name__}: {error}")
        ]
    return []


def _located(path: Path, error: AppaError, within: str) -> Iterator[Fault]:
    """Yield the faults that an error is about, with their places in the file."""
    cause, before = error.__cause__, (within,) if within else ()
    if isinstance(cause, ValidationError):
        for one in cause.errors(include_url=False):
            message = one["msg"].removeprefix("Value error, ").rstrip(".")
            absent = one["type"] == "missing" or not one["loc"]
            got = "" if absent or "; got " in message else repr(one["input"])[:200]
            field = (*before, *one["loc"])
            yield Fault(_line(path, field), ".".join(map(str, field)), message, got)
    elif isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
        yield Fault(cause.problem_mark.line + 1, "", f"Expected YAML; {cause.problem}")
    else:
        names = (error.context.get(name) for name in ("check", "parameter"))
        field = (*before, *(name for name in names if name))
        yield Fault(_line(path, field), ".".join(field), error.message.rstrip("."))


def _line(path: Path, field: tuple[Any, ...]) -> int | None:
    """Return the line of the innermost part of a field that is in a YAML file; None without any."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    line: int | None = None
    for part in field:
        if isinstance(node, yaml.MappingNode):
            pairs = [(key, value) for key, value in node.value if key.value == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            pairs = [(value, value) for value in node.value[part : part + 1]]
        else:
            pairs = []
        if not pairs:  # absent, or a part that names a type
            continue
        key, node = pairs[-1]
        line = key.start_mark.line + 1
    return line


def _tried(path: Path) -> list[Fault]:
    """Return the checks that stumble over the parameters of a file, when they run over made-up rows."""
    errors, named = try_parameters(load_parameters(path)), read_yaml(path)
    wanted = [check for check in errors if check in named] or list(errors)
    return [Fault(_line(path, (check,)), check, _words(errors[check])) for check in wanted]


def _words(error: Exception) -> str:
    """Return what to say of an error that a check ended with."""
    if isinstance(error, AppaError):
        return error.message.rstrip(".")
    reason = f"it lacks {error}" if isinstance(error, KeyError) else f"{error}"
    return f"Expected parameters that the check can work with; {reason}"


def _challenger(path: Path) -> None:
    """Read the suite on trial that a policy of cycles names, with its files.

    Raises:
        ConfigurationError: If there is a fault in it.
    """
    policy = read_policy(path)
    if policy is not None and policy.challenger is not None:
        frozen_suite(policy.challenger, path.parent)
