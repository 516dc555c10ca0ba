"""How large an answer may be: counted from the shapes of what is asked, before anything is read."""

import math
from contextvars import ContextVar
from typing import Any, Final

import xarray as xr
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import RequestError

__all__ = ["AnswerTooLarge", "BoundedAnswers", "check_answer", "check_points"]

DEFAULT_MOST: Final = 2_000_000
_MOST: ContextVar[int] = ContextVar("most_values", default=DEFAULT_MOST)

_TABLES = frozenset({"csv", "geojson"})
"""Forms with a column for each variable: every variable is repeated over all dimensions."""


class AnswerTooLarge(RequestError):
    """More values are asked for than one answer may have (413, as OGC EDR has it)."""

    code = "answer_too_large"


class BoundedAnswers:
    """Middleware that says how many values an answer of this application may have.

    Arguments:
        app: The application; its routes run in this context.
        most: Values.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = _MOST.set(self.most)
        try:
            await self.app(scope, receive, send)
        finally:
            _MOST.reset(token)


def check_answer(dataset: xr.Dataset, form: str = "") -> None:
    """Refuses an answer with too many values.

    Arguments:
        dataset: What would be sent, lazily.
        form: Format of the answer.

    Raises:
        AnswerTooLarge: Naming what is asked, the limit and how to ask for less.
    """
    if form in _TABLES:
        count = math.prod(dataset.sizes.values()) * len(dataset.data_vars)
    else:
        count = sum(variable.size for variable in dataset.data_vars.values())
    _check(count, dataset, {str(name): size for name, size in dataset.sizes.items()})


def check_points(dataset: xr.Dataset, points: int, horizontal: set[str]) -> None:
    """Refuses an area of too many cells, before they are picked one by one.

    Arguments:
        dataset: The fields around it, lazily.
        points: Cells within the area.
        horizontal: The two dimensions that become one of `points`.

    Raises:
        AnswerTooLarge: Naming what is asked, the limit and how to ask for less.
    """
    sizes = {str(n): size for n, size in dataset.sizes.items() if n not in horizontal}
    columns = (
        math.prod(size for name, size in variable.sizes.items() if name not in horizontal)
        for variable in dataset.data_vars.values()
    )
    _check(points * sum(columns), dataset, sizes | {"points": points})


def _check(count: int, dataset: xr.Dataset, sizes: dict[str, int]) -> None:
    most = _MOST.get()
    if count <= most:
        return
    extent = ", ".join(f"{name} {size}" for name, size in sizes.items())
    context: dict[str, Any] = {"values": count, "limit": most, "sizes": sizes}
    raise AnswerTooLarge(
        f"Expected at most {most} values in one answer; {count} are asked for: "
        f"{len(dataset.data_vars)} variables over {extent}. Name the variables wanted with "
        "'parameter-name', a level with 'z', a time with 'datetime', a member with 'realization', "
        "or take a smaller box or area. Whole fields are better read by zarr or OPeNDAP, or "
        "downloaded as a file.",
        **context,
        variables=len(dataset.data_vars),
    )
