"""Parameters of quality control: `qc.yaml`, overridden by deployment and by upload."""

import copy
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from model.domain.errors import ConfigurationError

__all__ = ["load_parameters"]

DEFAULTS = Path(__file__).with_name("qc.yaml")


def load_parameters(*overrides: Mapping[str, Any] | str | Path | None) -> dict[str, dict[str, Any]]:
    """The effective parameters by check, to be stored with each analysis.

    Arguments:
        overrides: Mappings `{check: {parameter: value}}` or paths of YAML files, applied in order;
            a value replaces the default's, maps by network or variable are merged key by key.

    Raises:
        ConfigurationError: On an unknown check or parameter, naming the known ones.
    """
    parameters = copy.deepcopy(_defaults())
    for override in overrides:
        for check, values in _parse(override).items():
            _apply(parameters, check, values)
    return parameters


@lru_cache(maxsize=1)
def _defaults() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(DEFAULTS.read_text())


def _parse(override: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any]:
    if override is None or isinstance(override, Mapping):
        return override or {}
    try:
        data = yaml.safe_load(Path(override).read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"Expected a YAML file of check parameters; {error}.") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"Expected a mapping of check parameters in '{override}'.")
    return data


def _apply(parameters: dict[str, dict[str, Any]], check: str, values: Any) -> None:
    if check not in parameters:
        raise ConfigurationError(
            f"Unknown check '{check}'. Known: {', '.join(sorted(parameters))}.", check=check
        )
    known = parameters[check]
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"Expected parameters by name for check '{check}'.", check=check)
    for name, value in values.items():
        if name not in known:
            raise ConfigurationError(
                f"Unknown parameter '{name}' of check '{check}'. Known: {', '.join(sorted(known))}.",
                check=check,
                parameter=name,
            )
        merge = isinstance(known[name], dict) and isinstance(value, Mapping)
        known[name] = {**known[name], **value} if merge else value
