"""Store cycles in Redis: one record for each valid time and flavour (early, final).

A cycle is the analysis of one valid time with a cut-off: an early one, and a final one once late
observations have arrived. State transitions are compare-and-set, so that any number of schedulers
may run.
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from model.domain.errors import InvalidInput
from worker.contract import scripts
from worker.contract.kinds import FIRST_YEAR, LAST_YEAR
from worker.contract.record_store import LeaseLost, MoveRefused, Page, RecordStore
from worker.contract.records import Record

__all__ = [
    "ALLOWED_CYCLE_MOVES",
    "CYCLE_DONE",
    "CycleRecord",
    "CycleState",
    "CycleStore",
    "FIRST_REVISION",
    "Flavour",
    "cycle_key",
    "parse_cycle_key",
]


class Flavour(StrEnum):
    """Which analysis of a valid time."""

    EARLY = "early"
    FINAL = "final"


FIRST_REVISION: dict[Flavour, int] = {Flavour.EARLY: 1, Flavour.FINAL: 2}
"""The early analysis is revision 1, the final one 2, whether or not there was an early one;
reruns count on from there."""


class CycleState(StrEnum):
    """Where a cycle is in its life."""

    WAITING = "waiting"
    DUE = "due"
    SUBMITTED = "submitted"
    PUBLISHED = "published"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


ALLOWED_CYCLE_MOVES: dict[CycleState, frozenset[CycleState]] = {
    CycleState.WAITING: frozenset({CycleState.DUE, CycleState.SKIPPED, CycleState.CANCELLED}),
    CycleState.DUE: frozenset(
        {CycleState.SUBMITTED, CycleState.SKIPPED, CycleState.CANCELLED, CycleState.DUE}
    ),
    CycleState.SUBMITTED: frozenset(
        {CycleState.PUBLISHED, CycleState.FAILED, CycleState.CANCELLED, CycleState.DUE}
    ),
    CycleState.PUBLISHED: frozenset({CycleState.DUE}),
    CycleState.FAILED: frozenset({CycleState.DUE}),
    CycleState.SKIPPED: frozenset({CycleState.DUE}),
    CycleState.CANCELLED: frozenset({CycleState.DUE}),
}
"""Allowed transitions. `waiting`: the cut-off is ahead, or uploads that arrived before it are still
being ingested; `due`: decided, waits for a free slot; `due -> due`: the reason for waiting changes;
`submitted -> due`: retry after a failed job; transitions from an end back to `due` are reruns."""

CYCLE_DONE = frozenset(
    {CycleState.PUBLISHED, CycleState.FAILED, CycleState.SKIPPED, CycleState.CANCELLED}
)
_KEY = re.compile(r"(\d{8}T\d{2})Z_(early|final)")


def cycle_key(valid_time: datetime, flavour: str) -> str:
    """Return a key such as `20031001T06Z_early`; sorts by valid time, early before final."""
    return f"{valid_time.astimezone(UTC):%Y%m%dT%H}Z_{Flavour(flavour).value}"


def parse_cycle_key(key: str) -> tuple[datetime, Flavour]:
    """Return the valid time and flavour that a key names.

    Raises:
        InvalidInput: If it is none.
    """
    form = _KEY.fullmatch(key)
    try:
        if form is None:
            raise ValueError
        time = datetime.strptime(form[1], "%Y%m%dT%H").replace(tzinfo=UTC)
        if not FIRST_YEAR <= time.year <= LAST_YEAR:
            raise ValueError
    except ValueError:
        raise InvalidInput(
            f"Expected the key of a cycle such as '20031001T06Z_early', of the years {FIRST_YEAR} to "
            f"{LAST_YEAR}; got {key!r}.",
            field="key",
        ) from None
    return time, Flavour(form[2])


class CycleRecord(Record):
    """One cycle: the analysis of a valid time in one flavour, from announcement to publication."""

    id: str = Field(description="Key, such as `20031001T06Z_early`; sorts by valid time.")
    valid_time: datetime = Field(description="Time of the analysis (UTC).")
    flavour: Flavour = Field(description="`early` or `final`.")
    cut_off: datetime = Field(description="Last arrival accepted (UTC).")
    state: CycleState = Field(default=CycleState.WAITING, description="How far it is.")
    job_id: str = Field(default="", description="The newest job submitted for it.")
    analysis_id: str = Field(default="", description="The newest analysis published for it.")
    revision: int = Field(
        default=1, ge=1, description="1 early, 2 final, more for reruns; of the newest job."
    )
    decided: datetime | None = Field(
        default=None, description="When its observations were complete and it became due (UTC)."
    )
    caught_up: bool = Field(
        default=False,
        description="Whether it became due so late that the next cut-off had passed, too.",
    )
    behind_seconds: float = Field(default=0.0, description="From the cut-off to the decision.")
    message: str = Field(default="", description="Why it was skipped, failed or retried.")
    attempts: int = Field(default=0, ge=0, description="Jobs submitted for this revision.")
    published: datetime | None = Field(
        default=None, description="When the analysis could be read (UTC)."
    )
    forecast_job_id: str = Field(default="", description="The forecast that it started.")
    forecast_id: str = Field(default="", description="Under this name the forecast is published.")
    cold_job_id: str = Field(default="", description="The cold window that it is compared with.")
    cold_id: str = Field(default="", description="Under this name that is published.")
    asked_by: str = Field(default="", description="API key that asked for the rerun.")
    token: int = Field(default=0, ge=0, description="Rises with every change of the record.")
    api_key: str = Field(default="", description="Always empty: cycles belong to nobody.")

    @property
    def key(self) -> str:
        """Return the key of the cycle, which is the record's id."""
        return self.id

    @property
    def rerun(self) -> int:
        """Return 0 for the regular analysis, 1 for the first rerun after it and so on."""
        return max(0, self.revision - FIRST_REVISION[self.flavour])

    @property
    def done(self) -> bool:
        """Return whether the cycle has ended; only a rerun starts it again."""
        return self.state in CYCLE_DONE

    @property
    def freshness_seconds(self) -> float | None:
        """Return the seconds from the cut-off to the published analysis; None before."""
        if self.published is None:
            return None
        return (self.published - self.cut_off).total_seconds()

    @property
    def unique_key(self) -> str:
        """Return the idempotency key of its job: equal for all schedulers, new for each retry."""
        retry = f".{self.attempts}" if self.attempts else ""
        return f"cycle:{self.id}:{self.rerun}{retry}"


_FRESH_ATTEMPT: dict[str, Any] = {
    "caught_up": False,
    "behind_seconds": 0.0,
    "attempts": 0,
    "published": None,
    "forecast_job_id": "",
    "forecast_id": "",
    "cold_job_id": "",
    "cold_id": "",
    "message": "rerun asked for",
}
"""Initial fields of a rerun cycle."""


class CycleStore(RecordStore[CycleRecord]):
    """Cycles in Redis, by key; safe for several schedulers at once."""

    noun = "cycle"
    model = CycleRecord
    waiting = CycleState.WAITING
    working = CycleState.SUBMITTED
    leased = ()
    ends = frozenset(state.value for state in CYCLE_DONE)

    def kind_of(self, record: CycleRecord) -> str:
        return record.flavour.value

    def own_names(self, record: CycleRecord) -> list[str]:
        return [record.id]

    def _sources(self, to: str) -> list[str]:
        return [state for state, moves in ALLOWED_CYCLE_MOVES.items() if to in moves]

    # -- reading

    def states(self, since: datetime) -> dict[str, CycleState]:
        """Return key and state of every cycle valid at `since` or later, and of all that wait."""
        first = cycle_key(since, Flavour.EARLY)
        low = f"[{first}"
        gone = self.archive.states(self.noun, first) if self.archive else {}
        pipe = self.redis.pipeline()
        for state in CycleState:
            from_ = "-" if state is CycleState.WAITING else low
            pipe.zrangebylex(self._index("state", state), from_, "+")
        here = {
            str(key): state
            for state, keys in zip(CycleState, pipe.execute(), strict=True)
            for key in keys
        }
        return {key: CycleState(state) for key, state in gone.items()} | here

    def in_state(self, *states: CycleState) -> list[CycleRecord]:
        """Return all cycles in one of these states, by valid time."""
        found = self._load(sorted(key for state in states for key in self.ids(state)))
        return [record for record in found if record.state in states]  # may have changed

    def load(self, keys: Iterable[str]) -> list[CycleRecord]:
        """Return the cycles with these keys, as far as they exist."""
        return self._load(list(keys))

    def newest(self, *, state: CycleState | None = None) -> str | None:
        """Return the key of the cycle with the latest valid time, of those in `state` if given."""
        index = self._index("state", state) if state else self._index("all")
        found = [str(key) for key in self._call(self.redis.zrevrange(index, 0, 0))]
        if self.archive is not None:
            wanted = state.value if state else ""
            found += [kept.id for kept in self.archive.select(self.noun, state=wanted, limit=1)]
        return max(found, default=None)

    def of_hour(self, valid_time: datetime) -> dict[Flavour, CycleRecord]:
        """Return the early and the final cycle of a valid time, as far as they exist."""
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
        """Return cycles, latest valid time first.

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
        if self.archive is not None:
            after = f"{cycle_key(end, Flavour.FINAL)}~" if end else ""  # sorts after this prefix
            gone = self.archive.states(self.noun, low.lstrip("[-"), below=after, state=state)
            keys = sorted({*keys, *gone}, reverse=True)
        keys = [key for key in keys if not flavour or key.endswith(f"_{flavour}")]
        rest = [key for key in keys if not cursor or key < cursor]
        more = rest[limit - 1] if len(rest) > limit else None
        return Page(self._load(rest[:limit]), more, len(keys))

    # -- changing

    def create(self, record: CycleRecord) -> tuple[CycleRecord, bool]:
        """Store a new cycle, or return the one with its key; also whether it was created now."""
        return self._create(record, kind=record.flavour, unique=[record.id])

    def change(self, record: CycleRecord, to: CycleState, **values: Any) -> bool:
        """Change a cycle from the state it was read in, unless it has changed since (compare-and-set).

        Arguments:
            record: As read.
            to: New state.
            values: Fields to set.

        Returns:
            Whether this caller made the change; False if another was first, or the transition is
            not allowed.
        """
        return self._change(record, to, values)

    def _change(
        self,
        record: CycleRecord,
        to: CycleState,
        values: Mapping[str, Any],
        unique: tuple[str, str] = ("", ""),
    ) -> bool:
        """Change a cycle and, atomically, store a value under a unique key if one is given."""
        key, held = unique
        if to not in ALLOWED_CYCLE_MOVES[record.state]:
            return False
        plain = CycleRecord.model_validate(
            {**record.model_dump(), **values, "state": to, "token": record.token + 1}
        ).model_dump(mode="json")
        fields = {name: plain[name] for name in (*values, "token")}
        terminal = to in CYCLE_DONE
        announced = {"valid_time": plain["valid_time"], "flavour": plain["flavour"], **fields}
        try:
            self._run(
                scripts.MOVE,
                record.id,
                to,
                f",{record.state},",
                record.token,
                self._fields(fields),
                self._event(to, **announced),
                int(terminal),
                held,
                keys=[key] if key else (),
            )
        except (LeaseLost, MoveRefused):
            return False
        return True

    def earlier_request(self, cycle: str, unique_key: str) -> str | None:
        """Return the request that reran `cycle` under an idempotency key; None if there was none."""
        return self.key_value(f"rerun:{cycle}:{unique_key}")

    def rerun(
        self,
        record: CycleRecord,
        cut_off: datetime,
        decided: datetime,
        asked_by: str = "",
        *,
        unique_key: str = "",
        request: str = "",
    ) -> CycleRecord:
        """Make an ended cycle due again as the next revision of its valid time.

        Arguments:
            record: As read; published, failed, skipped or cancelled.
            cut_off: Last arrival accepted now.
            decided: The operational present.
            asked_by: API key that asked.
            unique_key: The caller's idempotency key: at most one rerun is made under it.
            request: What was requested, which `earlier_request` returns later.

        Raises:
            MoveRefused: If it is not ended, or changed meanwhile.
        """
        name = f"rerun:{record.id}:{unique_key}"
        unique = self.keys.unique(self.noun, name) if unique_key else ""
        known = [r.revision for r in self.of_hour(record.valid_time).values()]
        values = {
            "revision": max(*known, *FIRST_REVISION.values(), record.revision) + 1,
            "cut_off": cut_off,
            "decided": decided,
            "asked_by": asked_by,
            **_FRESH_ATTEMPT,
        }
        made = record.done and self._change(record, CycleState.DUE, values, (unique, request))
        now = self.get(record.id)
        repeated = bool(unique_key) and self.earlier_request(record.id, unique_key) is not None
        if not made and not repeated:  # repeated: the same request was received meanwhile
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
