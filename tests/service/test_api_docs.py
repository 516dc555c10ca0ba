"""The page about the API names every code, setting and address there is."""

import re
from pathlib import Path

from service.errors import PROBLEMS
from service.settings import GatewaySettings
from tests.service.openapi_document import openapi_document

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()


def test_codes() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", PAGE, re.MULTILINE))
    assert documented == {code: str(kind.status) for code, kind in PROBLEMS.items()}


def test_settings() -> None:
    documented = set(re.findall(r"^\| `APPA_(\w+)` \|", PAGE, re.MULTILINE))
    assert documented == {name.upper() for name in GatewaySettings.model_fields}


def test_addresses() -> None:
    documented = {re.sub(r"\{\w+\}", "{}", path) for path in re.findall(r"/[\w/.{}]+", PAGE)}
    served = {re.sub(r"\{\w+\}", "{}", p) for p in openapi_document()["paths"]}
    assert served - documented <= {"/problems/{}"}
