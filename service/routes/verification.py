"""The time series of verification: how the analyses fare against what they did not see."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from service.dependencies import GatewayDep, Reader
from service.examples import VERIFICATION, shown
from service.openapi import problems
from service.schemas import VerificationPage
from worker.jobs.kinds.base import UtcTime
from worker.jobs.verification_pages import page_series
from worker.jobs.verification_series import SeriesFilter, find_series, newest_revisions

router = APIRouter(prefix="/v1", tags=["analyses"])

FLAVOURS = {"early": "early", "final": "final", "job": ""}


@router.get(
    "/verification",
    responses={
        **problems("storage_error"),
        200: shown({"items": [VERIFICATION], "next_cursor": None}),
    },
)
def read_verification(
    gateway: GatewayDep,
    _: Reader,
    statistic: Annotated[
        list[str] | None,
        Query(description="Such as `withheld_rmse_analysis`.", max_length=50),
    ] = None,
    network: Annotated[
        list[str] | None, Query(description="Report types, or `all`.", max_length=50)
    ] = None,
    variable: Annotated[
        list[str] | None, Query(description="Variable ids, or `all`.", max_length=50)
    ] = None,
    layer: Annotated[
        list[str] | None, Query(description="`surface`, `400-600 hPa`, `all` …", max_length=50)
    ] = None,
    flavour: Annotated[
        Literal["early", "final", "job"] | None,
        Query(description="Analyses of the cycles, or of single jobs."),
    ] = None,
    valid_from: Annotated[UtcTime | None, Query(description="First valid time (UTC).")] = None,
    valid_to: Annotated[UtcTime | None, Query(description="Last valid time (UTC).")] = None,
    revisions: Annotated[
        Literal["newest", "all"], Query(description="Of each valid time and flavour.")
    ] = "newest",
    limit: Annotated[int, Query(ge=1, le=20_000)] = 2_000,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before.", max_length=300)
    ] = None,
) -> VerificationPage:
    """Scores against withheld stations, departures, chi-square, estimated errors, spectra, balance.

    Oldest valid time first. Lists may be given with commas or by repeating the parameter. A page
    may hold fewer rows than asked for; go on while there is a `next_cursor`.
    """
    wanted = SeriesFilter(*map(_names, (statistic, network, variable, layer)))
    flavours = [] if flavour is None else [FLAVOURS[flavour]]
    entries = find_series(gateway.layout, valid_from, valid_to, flavours)
    if revisions == "newest":
        entries = newest_revisions(entries)
    page = page_series(gateway.layout, entries, wanted, cursor, limit)
    return VerificationPage(items=page.rows, next_cursor=page.next_cursor)


def _names(given: list[str] | None) -> list[str]:
    parts = (part.strip() for text in given or () for part in text.split(","))
    return [part for part in parts if part]
