"""The client's method for the series of verification, and its asyncio twin."""

from typing import Any

from service import client_calls as calls
from service.client_connection import GatewayConnection
from service.client_connection_async import AsyncGatewayConnection
from worker.jobs.verification_pages import SeriesRow

__all__ = ["AsyncVerificationMethods", "VerificationMethods"]


class VerificationMethods(GatewayConnection):
    """Verification, for `AppaClient`."""

    def verification(self, **filters: Any) -> list[SeriesRow]:
        """Numbers of the series, oldest first, all pages of them.

        Arguments:
            filters: `statistic`, `network`, `variable`, `layer` (one or a list), `flavour`,
                `valid_from`, `valid_to`, `revisions`.
        """
        rows: list[SeriesRow] = []
        cursor = None
        while True:
            page = self._json(calls.list_verification(cursor=cursor, **filters))
            rows += [SeriesRow.model_validate(item) for item in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                return rows


class AsyncVerificationMethods(AsyncGatewayConnection):
    """Verification, for `AsyncAppaClient`; see `VerificationMethods`."""

    async def verification(self, **filters: Any) -> list[SeriesRow]:
        """Numbers of the series, oldest first, all pages of them."""
        rows: list[SeriesRow] = []
        cursor = None
        while True:
            page = await self._json(calls.list_verification(cursor=cursor, **filters))
            rows += [SeriesRow.model_validate(item) for item in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                return rows
