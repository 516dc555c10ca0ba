"""Store records in Redis: what the stores of jobs, batches and cycles have in common.

A record is a hash; each field is JSON, except those the scripts compare, which are bare text.
Ids sort by creation time, so that sorted sets with equal scores are lists in that order. A record
that ended some time ago is only in the archive on disk; every query reads both.
"""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from redis import Redis

from model.domain.errors import AppaError, InvalidInput
from worker.contract import scripts
from worker.contract.archive import ArchivedRecord, RecordArchive
from worker.contract.events import STREAM_START, StreamId
from worker.contract.records import Record, utc_now
from worker.contract.redis_server import Keyspace
from worker.contract.usage import Charge, QuotaExceeded, UsageCounters

__all__ = ["LeaseLost", "MoveRefused", "NoSuchRecord", "Page", "RecordStore", "milliseconds"]

R = TypeVar("R", bound=Record)
_BARE = frozenset({"id", "state", "api_key"})
_OVERLAP_SECONDS = 120
"""Time that a unique key stays in Redis after its record was archived, so that a query which read
the archive just before still finds the key."""


class NoSuchRecord(InvalidInput):
    """An id that no job or batch has."""

    code = "not_found"


class MoveRefused(AppaError):
    """A state transition that the table of allowed transitions does not contain."""

    code = "move_refused"


class LeaseLost(AppaError):
    """Another attempt has taken over the record; this one must stop and publish nothing."""

    code = "lease_lost"


@dataclass(frozen=True)
class Page(Generic[R]):
    """A page of records, newest first; `next_cursor` asks for the following page."""

    items: list[R]
    next_cursor: str | None
    total: int


def _to_fields(values: Mapping[str, Any]) -> dict[str, str]:
    return {k: str(v) if k in _BARE else json.dumps(v) for k, v in values.items()}


class RecordStore(Generic[R]):
    """Records of one noun; `JobStore` and `BatchStore` say which."""

    noun: str
    model: type[R]
    waiting: str
    working: str
    leased: tuple[str, ...]
    ends: frozenset[str]
    keeps_events = True

    def __init__(
        self, redis: "Redis", keys: Keyspace, archive: RecordArchive | None = None
    ) -> None:
        self.redis = redis
        self.keys = keys
        self.archive = archive

    # -- reading

    def get(self, record_id: str) -> R:
        """Return the record with the id `record_id`.

        Raises:
            NoSuchRecord: If there is none.
        """
        record = self.find(record_id)
        if record is None:
            raise self.missing(record_id)
        return record

    def missing(self, record_id: str) -> NoSuchRecord:
        """Return the error for an id without a record."""
        return NoSuchRecord(f"Expected the id of a {self.noun}; got '{record_id}'.", id=record_id)

    def find(self, record_id: str) -> R | None:
        """Return the record with the id `record_id`, or None."""
        raw = self._call(self.redis.hgetall(self.keys.record(self.noun, record_id)))
        return self._decode(raw) or self._archived(record_id)

    def _archived(self, record_id: str) -> R | None:
        kept = self.archive.find(self.noun, record_id) if self.archive else None
        return None if kept is None else self._revive(kept)

    def _revive(self, kept: ArchivedRecord) -> R:
        known = self.model.model_fields
        return self.model.model_validate({k: v for k, v in kept.fields.items() if k in known})

    def _decode(self, raw: Mapping[str, str]) -> R | None:
        if not raw:
            return None
        known = self.model.model_fields  # a newer version may have stored more fields
        values = {k: v if k in _BARE else json.loads(v) for k, v in raw.items() if k in known}
        return self.model.model_validate(values)

    def state_and_token(self, record_id: str) -> tuple[str, int]:
        """Return state and newest token; cheap enough for every diffusion step."""
        key = self.keys.record(self.noun, record_id)
        state, token = self._call(self.redis.hmget(key, ["state", "token"]))
        if state is None and self.archive and (kept := self.archive.find(self.noun, record_id)):
            return kept.state, int(kept.fields.get("token", 0))
        return str(state or ""), int(token or 0)

    def states_and_tokens(self, ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Return state and newest token of several records, in one exchange with the server."""
        pipe = self.redis.pipeline(transaction=False)
        for record_id in ids:
            pipe.hmget(self.keys.record(self.noun, record_id), ["state", "token"])
        answers = self._call(pipe.execute()) if ids else []
        return {i: (str(s or ""), int(t or 0)) for i, (s, t) in zip(ids, answers, strict=True)}

    def ids(self, state: str) -> list[str]:
        """Return the ids of all records in `state` that are in Redis, oldest first."""
        return list(self._call(self.redis.zrange(self._index("state", state), 0, -1)))

    def count(self, state: str) -> int:
        """Return the number of records in `state`."""
        here = int(self._call(self.redis.zcard(self._index("state", state))))
        gone = self.archive.count(self.noun, state=state) if self.archive else 0
        return here + gone

    def known(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that have a record."""
        here = self.in_redis(ids)
        rest = [name for name in ids if name not in here]
        return here | (self.archive.known(self.noun, rest) if self.archive else set())

    def in_redis(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` whose record is in Redis."""
        if not ids:
            return set()
        scores = self._call(self.redis.zmscore(self._index("all"), list(ids)))
        return {name for name, score in zip(ids, scores, strict=True) if score is not None}

    def active(self, api_key: str) -> int:
        """Return the number of unfinished records of an API key."""
        return int(self._call(self.redis.zcard(self._index("active", api_key))))

    def page(
        self,
        *,
        state: str = "",
        kind: str = "",
        owners: Collection[str] | None = None,
        low: str = "",
        high: str = "",
        cursor: str = "",
        limit: int = 50,
    ) -> Page[R]:
        """Return a page of records, newest first.

        Arguments:
            state: Only those in this state.
            kind: Only those of this kind.
            owners: Only those of these owners, ids of API keys and `NOBODY`; of all when absent.
            low: Lowest id; empty for no limit. The total counts those outside of both limits as well,
                for counting a part of a long history would take seconds.
            high: All ids are lower than this.
            cursor: `next_cursor` of the previous page.
            limit: Most records.
        """
        found: set[str] = set()
        total = 0
        below = min(filter(None, (cursor, high)), default="")
        top, bottom = f"({below}" if below else "+", f"[{low}" if low else "-"
        for owner in [None] if owners is None else sorted(set(owners)):
            source = self._source(state, kind, owner)
            found.update(self._call(self.redis.zrevrangebylex(source, top, bottom, 0, limit + 1)))
            total += int(self._call(self.redis.zcard(source)))
            if self.archive is not None:
                gone = self.archive.select(
                    self.noun,
                    state=state,
                    kind=kind,
                    owner=owner,
                    low=low,
                    below=below,
                    limit=limit + 1,
                )
                total += self.archive.count(self.noun, state=state, kind=kind, owner=owner)
                found.update(kept.id for kept in gone)
        ids = sorted(found, reverse=True)
        more = ids[limit - 1] if len(ids) > limit else None
        return Page(self._load(ids[:limit]), more, total)

    def _source(self, state: str, kind: str, owner: str | None) -> str:
        """Return the key of the sorted set of the records in Redis of a state, kind and owner."""
        index = [self._index("state", state)] if state else []
        index += [self._index("kind", kind)] if kind else []
        index += [self._index("owner", owner)] if owner is not None else []
        if len(index) < 2:
            return index[0] if index else self._index("all")
        source = ":and:".join([self._index("of"), state, kind, "*" if owner is None else owner])
        self._call(self.redis.zinterstore(source, index))
        self._call(self.redis.expire(source, 60))
        return source

    def _load(self, ids: Sequence[str]) -> list[R]:
        pipe = self.redis.pipeline(transaction=False)
        for record_id in ids:
            pipe.hgetall(self.keys.record(self.noun, record_id))
        pairs = zip(ids, pipe.execute(), strict=True)
        found = (self._decode(raw) or self._archived(record_id) for record_id, raw in pairs)
        return [record for record in found if record is not None]

    def position(self, record_id: str) -> int | None:
        """Return the number of waiting records ahead of this one; None when it does not wait."""
        rank = self._call(self.redis.zrank(self._index("state", self.waiting), record_id))
        return None if rank is None else int(rank)

    def events(self, record_id: str, after: str = STREAM_START) -> list[tuple[str, str, Any]]:
        """Return the events after the entry `after`, each as (id, type, data)."""
        entries = [
            e for e in self._events(record_id) if StreamId.parse(e[0]) > StreamId.parse(after)
        ]
        return [(entry, kind, json.loads(data)) for entry, kind, data in entries]

    def newest_event(self, record_id: str) -> str:
        """Return the id of the last event; `STREAM_START` when there is none."""
        last = self._call(self.redis.xrevrange(self.keys.events(self.noun, record_id), count=1))
        if last:
            return str(last[0][0])
        events = self._events(record_id)
        return events[-1][0] if events else STREAM_START

    def _events(self, record_id: str) -> list[tuple[str, str, str]]:
        """Return all events, with their data as JSON text."""
        entries = self._call(self.redis.xrange(self.keys.events(self.noun, record_id)))
        if entries or self.archive is None:
            return [(str(i), str(f["type"]), str(f["data"])) for i, f in entries]
        kept = self.archive.find(self.noun, record_id)
        return [(e[0], e[1], e[2]) for e in kept.events] if kept else []

    # -- changing

    def claim(self, record_id: str, worker: str, lease: timedelta) -> R:
        """Start an attempt: give the record to a worker, with a new token and a lease.

        Raises:
            MoveRefused: If it does not wait (done, cancelled, or held by another worker).
            NoSuchRecord: If there is none.
        """
        fields = {"worker": worker, "started": utc_now().isoformat(), "retry_at": None}
        self._run(
            scripts.CLAIM,
            record_id,
            self.waiting,
            self.working,
            milliseconds(lease),
            json.dumps(_to_fields(fields)),
            self._event(self.working, worker=worker),
        )
        return self.get(record_id)

    def beat(self, record_id: str, token: int, lease: timedelta) -> str:
        """Extend the lease and return the state of the record.

        Raises:
            LeaseLost: If a newer attempt holds the record or it is finished.
        """
        states = _commas(self.leased)
        try:
            return self._run(scripts.BEAT, record_id, token, milliseconds(lease), states)
        except MoveRefused as error:
            raise LeaseLost(error.message, id=record_id) from error

    def move(
        self, record_id: str, to: str, *, token: int | None, terminal: bool, **values: Any
    ) -> None:
        """Change the record to state `to` and set `values`, if transition and token allow.

        Raises:
            MoveRefused: If the transition is not allowed.
            LeaseLost: If `token` is no longer the newest.
        """
        self._run(scripts.MOVE, record_id, *self._move(to, token, terminal, values))

    def move_all(
        self, to: str, tokens: Mapping[str, int], *, terminal: bool, values: Mapping[str, Any]
    ) -> dict[str, Exception]:
        """Change records to state `to`, each by itself, in one round trip to the server.

        Arguments:
            to: The new state.
            tokens: By record.
            terminal: Whether they have ended.
            values: What to set, by record.

        Returns:
            The error that `move` would raise, by record; only of records that were not changed.
        """
        pipe = self.redis.pipeline(transaction=False)
        run = self.redis.register_script(scripts.MOVE)
        for record_id, token in tokens.items():
            keys, args = self._call_of(
                record_id, self._move(to, token, terminal, dict(values[record_id]))
            )
            run(keys=keys, args=args, client=pipe)
        refused: dict[str, Exception] = {}
        answers = self._call(pipe.execute()) if tokens else []
        for record_id, answer in zip(tokens, answers, strict=True):
            try:
                self._value(record_id, answer)
            except (LeaseLost, MoveRefused, NoSuchRecord) as error:
                refused[record_id] = error
        return refused

    def _move(
        self, to: str, token: int | None, terminal: bool, values: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Return the arguments of the script that moves a record."""
        if terminal:
            values["finished"] = utc_now()
        fields = _to_fields({k: _plain(v) for k, v in values.items()})
        problem = values.get("error")
        extra = {"error": _plain(problem)} if problem is not None else {}
        return (
            to,
            _commas(self._sources(to)),
            "" if token is None else token,
            json.dumps(fields),
            self._event(to, **extra),
            int(terminal),
        )

    def reap(self, record_id: str, lost_workers: int, problem: Record) -> str:
        """Take a record from a worker whose lease has expired: back to waiting, or to its end.

        Arguments:
            record_id: A record that seems abandoned.
            lost_workers: Number of lost workers at which the record fails.
            problem: The reason, kept in the record.

        Returns:
            The new state, or `held` if the lease is still valid.
        """
        error = _plain(problem)
        end = {"finished": utc_now().isoformat()}
        try:
            return self._run(
                scripts.REAP,
                record_id,
                self.working,
                self.waiting,
                "failed",
                lost_workers,
                json.dumps(_to_fields({"error": error})),
                json.dumps(_to_fields({"error": error, **end})),
                json.dumps(_to_fields(end)),
                self._event(self.waiting, error=error),
                self._event("failed", error=error),
                self._event("cancelled"),
            )
        except (MoveRefused, NoSuchRecord):
            return "held"

    def _sources(self, to: str) -> list[str]:
        raise NotImplementedError

    def _create(
        self,
        record: R,
        *,
        kind: str,
        unique: Sequence[str] = (),
        lane: str = "",
        looked_up: bool = False,
        charge: Charge | None = None,
    ) -> tuple[R, bool]:
        """Store a new record, or return the one that holds one of its `unique` keys.

        The first key in use decides; free keys before it are then bound to the same record. A record
        in a lane waits there for its owner's turn.
        `looked_up`: the archive is known to have no other record under the keys. A new record is
        charged to its owner.

        Raises:
            QuotaExceeded: If the charge does not fit into the owner's quota of the day.
        """
        values = record.model_dump(mode="json")
        keys = [self.keys.unique(self.noun, key) for key in unique]
        if not looked_up:
            self._restore_keys(keys)
        state, owner = str(values["state"]), str(values["api_key"])
        fields = json.dumps(_to_fields(values))
        charged = UsageCounters.text(charge if owner else None)
        arguments = (state, kind, owner, fields, self._event(state), lane, charged)
        status, known = self._execute(scripts.CREATE, str(values["id"]), arguments, keys)
        if status == "ok":
            return record, True
        if status == "quota" and charge is not None:
            today = UsageCounters(self.redis, self.keys).read(owner)
            raise QuotaExceeded(charge, int(known), today.reset, today.retry_after)
        if self.archive is not None and not self.in_redis([known]):
            self.archive.bind_keys(self.noun, dict.fromkeys(keys, known), known)
        return self.get(known), False

    def _restore_keys(self, keys: Sequence[str]) -> None:
        """Copy unique keys of archived records to Redis, where creation looks for them."""
        if self.archive is None or not keys:
            return
        held = self._call(self.redis.mget(keys))
        missing = [key for key, value in zip(keys, held, strict=True) if value is None]
        for key, value in self.archive.names(self.noun, missing).items():
            self.redis.set(key, value, nx=True, ex=_OVERLAP_SECONDS)

    def key_value(self, unique: str) -> str | None:
        """Return the value of a unique key, here or in the archive: usually the id of a record."""
        key = self.keys.unique(self.noun, unique)
        found = self._call(self.redis.get(key))
        if found is None and self.archive is not None:
            found = self.archive.names(self.noun, [key]).get(key)
        return None if found is None else str(found)

    def bind_key(self, record_id: str, unique: str) -> None:
        """Bind a unique key to a stored record, unless the key is in use."""
        key = self.keys.unique(self.noun, unique)
        status, _ = self._execute(scripts.BIND_KEY, record_id, (), [key])
        if self.archive is not None:  # it may have copied the record already
            self.archive.bind_keys(self.noun, {key: record_id}, record_id)
        elif status == "missing":
            raise self.missing(record_id)

    def delete_keys(self, unique: Sequence[str]) -> None:
        """Delete unique keys in Redis and in the archive, so that new records may use them."""
        keys = [self.keys.unique(self.noun, name) for name in unique]
        self.redis.delete(*keys)
        if self.archive is not None:
            self.archive.delete_keys(self.noun, keys)

    # -- between Redis and the archive

    def kind_of(self, record: R) -> str:
        """Return the second index of a record, besides its state."""
        raise NotImplementedError

    def own_names(self, record: R) -> list[str]:
        """Return the unique keys that follow from the record itself."""
        return []

    def pending_archive(self, limit: int) -> list[str]:
        """Return ids of records that ended or changed and are still to be copied to the archive."""
        return list(self._call(self.redis.srandmember(self._index("fresh"), limit)))

    def mark_archived(self, ids: Sequence[str]) -> None:
        """Mark these records, returned by `pending_archive`, as copied to the archive."""
        if ids:
            self._call(self.redis.srem(self._index("fresh"), *ids))

    def ended_before(self, when: float, limit: int) -> list[tuple[str, float]]:
        """Return records that ended before `when` (seconds since 1970), with the score of their end."""
        index, last = self._index("ended"), 1000.0 * when
        rows = self._call(
            self.redis.zrangebyscore(index, "-inf", last, start=0, num=limit, withscores=True)
        )
        return [(str(record_id), float(score)) for record_id, score in rows]

    def mark_ended(self, ids: Sequence[str]) -> None:
        """Mark ended records without a time of their end for archiving."""
        if not ids:
            return
        now = round(1000 * time.time())
        pipe = self.redis.pipeline()
        pipe.zadd(self._index("ended"), dict.fromkeys(ids, now), nx=True)
        pipe.sadd(self._index("fresh"), *ids)
        pipe.execute()

    def drop_ended(self, ids: Collection[str]) -> None:
        """Remove the end times of records that no longer exist."""
        if ids:
            self._call(self.redis.zrem(self._index("ended"), *ids))

    def snapshot(self, ids: Sequence[str]) -> list[ArchivedRecord]:
        """Return records as they are in Redis, with their unique keys and their events."""
        count = None if self.keeps_events else 1
        pipe = self.redis.pipeline(transaction=False)
        for record_id in ids:
            pipe.hgetall(self.keys.record(self.noun, record_id))
            pipe.smembers(self.keys.held(self.noun, record_id))
            pipe.xrange(self.keys.events(self.noun, record_id), count=count)
        rows = pipe.execute()
        found = []
        for raw, held, entries in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
            record = self._decode(raw)
            if record is not None:
                own = (self.keys.unique(self.noun, name) for name in self.own_names(record))
                past = [(i, f["type"], f["data"]) for i, f in entries]
                found.append((record, sorted({*held, *own}), past if self.keeps_events else []))
        pipe = self.redis.pipeline(transaction=False)
        for _, names, _ in found:
            pipe.mget(names or [self.keys.held(self.noun, "")])
        values = pipe.execute()
        return [
            self.kept(record, dict(zip(names, held, strict=False)), past)
            for (record, names, past), held in zip(found, values, strict=True)
        ]

    def kept(
        self, record: R, names: Mapping[str, str | None], events: Sequence[Sequence[str]] = ()
    ) -> ArchivedRecord:
        """Return a record as a row of the archive; unique keys without a value are left out."""
        values = record.model_dump(mode="json")
        ended = None
        if values["state"] in self.ends:
            finished = getattr(record, "finished", None)
            ended = finished.timestamp() if finished else time.time()
        held = {name: value for name, value in names.items() if value is not None}
        kind = self.kind_of(record)
        return ArchivedRecord(
            self.noun,
            str(values["id"]),
            str(values["state"]),
            kind,
            values,
            ended,
            True,
            events,
            held,
        )

    def evict(self, kept: ArchivedRecord, score: float) -> bool:
        """Delete an ended record from Redis unless it was changed since; return whether it was deleted."""
        keys = list(kept.names)
        arguments = (kept.kind, int(score), _OVERLAP_SECONDS)
        return self._execute(scripts.EVICT, kept.id, arguments, keys)[0] == "ok"

    def restore_archived(self, kept: ArchivedRecord) -> str:
        """Restore an archived record to Redis unless it is there; return its state there."""
        fields = json.dumps(_to_fields(kept.fields))
        owner = str(kept.fields.get("api_key", ""))
        past = json.dumps([list(event) for event in kept.events])
        ended = int(kept.state in self.ends)
        announced = self._event(kept.state)
        return self._run(
            scripts.RESTORE, kept.id, kept.state, kept.kind, owner, fields, ended, past, announced
        )

    # -- plumbing

    def _execute(
        self, script: str, record_id: str, args: Sequence[Any], keys: Sequence[str] = ()
    ) -> tuple[str, str]:
        """Run a script; return its status and value."""
        names, arguments = self._call_of(record_id, args)
        run = self.redis.register_script(script)
        status, value = self._call(run(keys=[*names, *keys], args=arguments))
        return str(status), str(value)

    def _run(self, script: str, record_id: str, *args: Any, keys: Sequence[str] = ()) -> str:
        answer = self._execute(script, record_id, args, keys)
        if answer[0] == "missing" and self._restore_ended(record_id):
            answer = self._execute(script, record_id, args, keys)
        return self._value(record_id, answer)

    def _call_of(self, record_id: str, args: Sequence[Any]) -> tuple[list[str], list[Any]]:
        """Return the keys and arguments of a script about one record."""
        noun, names = self.noun, self.keys
        own = [f(noun, record_id) for f in (names.record, names.lease, names.events)]
        return own, [names.index(noun), record_id, names.channel, noun, *args]

    def _value(self, record_id: str, answer: Any) -> str:
        """Return the value in a script's reply; raise the matching error if it is a refusal."""
        noun, (status, value) = self.noun, answer
        if status == "missing":
            raise self.missing(record_id)
        if status == "stale":
            raise LeaseLost(f"Another attempt holds {noun} '{record_id}'.", id=record_id)
        if status == "refused":
            raise MoveRefused(
                f"Expected {noun} '{record_id}' in a state that allows this; it is '{value}'.",
                id=record_id,
                state=value,
            )
        return value if status != "held" else "held"

    def _restore_ended(self, record_id: str) -> bool:
        """Restore an archived record to Redis, so that a script can read or change it."""
        kept = self.archive.find(self.noun, record_id) if self.archive else None
        if kept is None or kept.state not in self.ends:
            return False
        self.restore_archived(kept)
        assert self.archive is not None  # noqa: S101
        self.archive.set_present(self.noun, [record_id], True)
        return True

    def _index(self, *parts: str) -> str:
        return ":".join([self.keys.index(self.noun), *(parts or ("all",))])

    @staticmethod
    def _fields(values: Mapping[str, Any]) -> str:
        return json.dumps(_to_fields(values))

    @staticmethod
    def _event(state: str, **data: Any) -> str:
        return json.dumps({"state": state, "time": utc_now().isoformat(), **data})

    @staticmethod
    def _call(result: Any) -> Any:
        """Return a reply; redis-py types replies as possibly awaitable, which ours never are."""
        return result


def _plain(value: Any) -> Any:
    """Return `value` in a form that JSON can hold."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value.isoformat() if hasattr(value, "isoformat") else value


def milliseconds(duration: timedelta) -> int:
    """Return a duration in whole milliseconds."""
    return int(duration / timedelta(milliseconds=1))


def _commas(states: Sequence[str]) -> str:
    return "," + ",".join(states) + ","
