"""The client's methods for cycles, and their asyncio twins."""

import uuid
from datetime import datetime
from typing import Any

from service import client_calls as calls
from service.client_calls import Call
from service.client_connection import GatewayConnection
from service.client_connection_async import AsyncGatewayConnection
from worker.jobs.cycle import CycleRecord, Flavour, cycle_key
from worker.jobs.cycle_explanation import CycleExplanation

__all__ = ["AsyncCycleMethods", "CycleMethods"]


def _path(cycle: str | datetime, flavour: str, verb: str = "") -> str:
    key = cycle_key(cycle, flavour) if isinstance(cycle, datetime) else cycle
    return f"/v1/cycles/{key}{verb}"


def _rerun(
    cycle: str | datetime, cut_off: datetime | str | None, idempotency_key: str | None
) -> Call:
    """Without a key of the caller's own a random one makes repeats safe."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    body = {"cut_off": cut_off.isoformat() if isinstance(cut_off, datetime) else cut_off}
    return Call("POST", _path(cycle, Flavour.FINAL, "/rerun"), headers=headers, json=body)


class CycleMethods(GatewayConnection):
    """Cycles, for `AppaClient`; a cycle is named by its key, or by a valid time and a flavour."""

    def cycles(self, **filters: Any) -> list[CycleRecord]:
        """Newest cycles: `state`, `flavour`, `valid_from`, `valid_to`, `limit`."""
        page = self._json(calls.list_cycles(**filters))
        return [CycleRecord.model_validate(item) for item in page["items"]]

    def cycle(self, cycle: str | datetime, flavour: str = Flavour.FINAL) -> CycleRecord:
        """How far a cycle is."""
        return CycleRecord.model_validate(self._get(_path(cycle, flavour)))

    def explain_cycle(
        self, cycle: str | datetime, flavour: str = Flavour.FINAL
    ) -> CycleExplanation:
        """What its analysis used, what was late, what was rejected and why, what changed."""
        return CycleExplanation.model_validate(self._get(_path(cycle, flavour, "/explain")))

    def rerun_cycle(
        self,
        cycle: str | datetime,
        cut_off: datetime | str | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> CycleRecord:
        """Makes a final analysis again, by default with all that has arrived.

        Asked once more with the same `idempotency_key`, it is not made a second time.
        """
        call = _rerun(cycle, cut_off, idempotency_key)
        return CycleRecord.model_validate(self._json(call))


class AsyncCycleMethods(AsyncGatewayConnection):
    """Cycles, for `AsyncAppaClient`; see `CycleMethods`."""

    async def cycles(self, **filters: Any) -> list[CycleRecord]:
        """Newest cycles: `state`, `flavour`, `valid_from`, `valid_to`, `limit`."""
        page = await self._json(calls.list_cycles(**filters))
        return [CycleRecord.model_validate(item) for item in page["items"]]

    async def cycle(self, cycle: str | datetime, flavour: str = Flavour.FINAL) -> CycleRecord:
        """How far a cycle is."""
        return CycleRecord.model_validate(await self._get(_path(cycle, flavour)))

    async def explain_cycle(
        self, cycle: str | datetime, flavour: str = Flavour.FINAL
    ) -> CycleExplanation:
        """What its analysis used, what was late, what was rejected and why, what changed."""
        return CycleExplanation.model_validate(await self._get(_path(cycle, flavour, "/explain")))

    async def rerun_cycle(
        self,
        cycle: str | datetime,
        cut_off: datetime | str | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> CycleRecord:
        """Makes a final analysis again, by default with all that has arrived.

        Asked once more with the same `idempotency_key`, it is not made a second time.
        """
        call = _rerun(cycle, cut_off, idempotency_key)
        return CycleRecord.model_validate(await self._json(call))
