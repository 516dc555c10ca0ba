"""The cycle store: one record for each valid time and flavour; every change is compare-and-set."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from worker.jobs import scripts
from worker.jobs.cycle import (
    ALLOWED_CYCLE_MOVES,
    CYCLE_DONE,
    FIRST_REVISION,
    CycleRecord,
    CycleState,
    Flavour,
    cycle_key,
)
from worker.jobs.record_store import LeaseLost, MoveRefused, Page, RecordStore

__all__ = ["CycleStore"]

_ANEW: dict[str, Any] = {
    "caught_up": False,
    "behind_seconds": 0.0,
    "attempts": 0,
    "published": None,
    "forecast_job_id": "",
    "forecast_id": "",
    "message": "rerun asked for",
}
"""Fields of a cycle that is made again."""


class CycleStore(RecordStore[CycleRecord]):
    """Cycles in Redis."""

    noun = "cycle"
    model = CycleRecord
    waiting = CycleState.WAITING
    working = CycleState.SUBMITTED
    leased = ()

    def _sources(self, to: str) -> list[str]:
        return [state for state, moves in ALLOWED_CYCLE_MOVES.items() if to in moves]

    # -- reading

    def states(self, since: datetime) -> dict[str, CycleState]:
        """Key and state of every cycle valid at `since` or later, and of all that wait."""
        low = f"[{cycle_key(since, Flavour.EARLY)}"
        pipe = self.redis.pipeline()
        for state in CycleState:
            from_ = "-" if state is CycleState.WAITING else low
            pipe.zrangebylex(self._index("state", state), from_, "+")
        return {
            str(key): state
            for state, keys in zip(CycleState, pipe.execute(), strict=True)
            for key in keys
        }

    def in_state(self, *states: CycleState) -> list[CycleRecord]:
        """All cycles in one of these states, by valid time."""
        found = self._load(sorted(key for state in states for key in self.ids(state)))
        return [record for record in found if record.state in states]  # moved on meanwhile

    def load(self, keys: Iterable[str]) -> list[CycleRecord]:
        """The cycles with these keys that exist."""
        return self._load(list(keys))

    def newest(self, *, state: CycleState | None = None) -> str | None:
        """Key of the cycle with the latest valid time, of those in `state` if given."""
        index = self._index("state", state) if state else self._index("all")
        found = self._call(self.redis.zrevrange(index, 0, 0))
        return str(found[0]) if found else None

    def of_hour(self, valid_time: datetime) -> dict[Flavour, CycleRecord]:
        """The early and the final cycle of a valid time, as far as they exist."""
        found = self._load([cycle_key(valid_time, flavour) for flavour in Flavour])
        return {record.flavour: record for record in found}

    def select(
        self,
        *,
        state: str = "",
        flavour: str = "",
        start: datetime | None = None,
        end: datetime | None = None,
        cursor: str = "",
        limit: int = 50,
    ) -> Page[CycleRecord]:
        """Cycles, latest valid time first.

        Arguments:
            state: Only those in this state.
            flavour: Only `early` or `final`.
            start: First valid time.
            end: Last valid time.
            cursor: Key after which the page begins, from the page before.
            limit: Most cycles of a page.
        """
        low = f"[{cycle_key(start, Flavour.EARLY)}" if start else "-"
        high = f"[{cycle_key(end, Flavour.FINAL)}" if end else "+"
        source = self._index("state", state) if state else self._index("all")
        keys = list(self._call(self.redis.zrevrangebylex(source, high, low)))
        keys = [key for key in keys if not flavour or key.endswith(f"_{flavour}")]
        rest = [key for key in keys if not cursor or key < cursor]
        more = rest[limit - 1] if len(rest) > limit else None
        return Page(self._load(rest[:limit]), more, len(keys))

    # -- changing

    def create(self, record: CycleRecord) -> tuple[CycleRecord, bool]:
        """Stores a new cycle, or finds the one with its key; the second of two schedulers finds."""
        return self._create(record, kind=record.flavour, unique=[record.id])

    def change(self, record: CycleRecord, to: CycleState, **values: Any) -> bool:
        """Moves a cycle on from the state it was read in, unless it has changed since.

        Arguments:
            record: As read.
            to: New state.
            values: Fields to set.

        Returns:
            Whether this caller made the change; False when another was first, or the table of
            moves does not hold it.
        """
        return self._change(record, to, values)

    def _change(
        self,
        record: CycleRecord,
        to: CycleState,
        values: Mapping[str, Any],
        unique: tuple[str, str] = ("", ""),
    ) -> bool:
        """The move; in the same step a unique key, if one is named, begins to hold a value."""
        key, held = unique
        if to not in ALLOWED_CYCLE_MOVES[record.state]:
            return False
        plain = CycleRecord.model_validate(
            {**record.model_dump(), **values, "state": to, "token": record.token + 1}
        ).model_dump(mode="json")
        fields = {name: plain[name] for name in (*values, "token")}
        terminal = to in CYCLE_DONE
        told = {"valid_time": plain["valid_time"], "flavour": plain["flavour"], **fields}
        try:
            self._run(
                scripts.MOVE,
                record.id,
                to,
                f",{record.state},",
                record.token,
                self._fields(fields),
                self._event(to, **told),
                int(terminal),
                held,
                keys=[key] if key else (),
            )
        except (LeaseLost, MoveRefused):
            return False
        return True

    def asked_before(self, cycle: str, unique_key: str) -> str | None:
        """What was asked with the rerun of `cycle` under a caller's own key; None if nothing was."""
        found = self._call(self.redis.get(self._rerun_key(cycle, unique_key)))
        return None if found is None else str(found)

    def _rerun_key(self, cycle: str, unique_key: str) -> str:
        return self.keys.unique(self.noun, f"rerun:{cycle}:{unique_key}")

    def rerun(
        self,
        record: CycleRecord,
        cut_off: datetime,
        decided: datetime,
        asked_by: str = "",
        *,
        unique_key: str = "",
        asked: str = "",
    ) -> CycleRecord:
        """Makes an ended cycle due again as the next revision of its valid time.

        Arguments:
            record: As read; published, failed, skipped or cancelled.
            cut_off: Last arrival accepted now.
            decided: The operational present.
            asked_by: API key that asked.
            unique_key: A caller's own key: one rerun at most is made under it.
            asked: What `asked_before` tells of this request.

        Raises:
            MoveRefused: If it is not ended, or changed meanwhile.
        """
        unique = self._rerun_key(record.id, unique_key) if unique_key else ""
        known = [r.revision for r in self.of_hour(record.valid_time).values()]
        values = {
            "revision": max(*known, *FIRST_REVISION.values(), record.revision) + 1,
            "cut_off": cut_off,
            "decided": decided,
            "asked_by": asked_by,
            **_ANEW,
        }
        made = record.done and self._change(record, CycleState.DUE, values, (unique, asked))
        now = self.get(record.id)
        repeated = bool(unique_key) and self.asked_before(record.id, unique_key) is not None
        if not made and not repeated:  # repeated: the same request came in meanwhile
            raise MoveRefused(
                f"Expected an ended cycle to run again; '{record.id}' is {now.state}. Wait for "
                "its end.",
                id=record.id,
                state=now.state,
            )
        return now

    @staticmethod
    def _event(state: str, **data: Any) -> str:
        return json.dumps({"state": state, **data})
