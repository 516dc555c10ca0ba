"""Store records in Redis: what the stores of jobs, batches and cycles have in common.

A record is a hash; each field is JSON, except those the scripts compare, which are bare text.
Ids sort by creation time, so that sorted sets with equal scores are lists in that order.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from redis import Redis

from model.domain.errors import AppaError, InvalidInput
from worker.contract import scripts
from worker.contract.events import STREAM_START
from worker.contract.records import Record, utc_now
from worker.contract.redis_server import Keyspace

__all__ = ["LeaseLost", "MoveRefused", "NoSuchRecord", "Page", "RecordStore", "milliseconds"]

R = TypeVar("R", bound=Record)
_BARE = frozenset({"id", "state", "api_key"})


class NoSuchRecord(InvalidInput):
    """An id that no job or batch has."""

    code = "not_found"


class MoveRefused(AppaError):
    """A move of state that the table of allowed moves does not hold."""

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

    def __init__(self, redis: "Redis", keys: Keyspace) -> None:
        self.redis = redis
        self.keys = keys

    # -- reading

    def get(self, record_id: str) -> R:
        """Return the record with the id `record_id`.

        Raises:
            NoSuchRecord: If there is none.
        """
        record = self.find(record_id)
        if record is None:
            raise NoSuchRecord(
                f"Expected the id of a {self.noun}; got '{record_id}'.", id=record_id
            )
        return record

    def find(self, record_id: str) -> R | None:
        """Return the record with the id `record_id`, or None."""
        return self._decode(self._call(self.redis.hgetall(self.keys.record(self.noun, record_id))))

    def _decode(self, raw: Mapping[str, str]) -> R | None:
        if not raw:
            return None
        known = self.model.model_fields  # a newer version may have stored more
        values = {k: v if k in _BARE else json.loads(v) for k, v in raw.items() if k in known}
        return self.model.model_validate(values)

    def state_and_token(self, record_id: str) -> tuple[str, int]:
        """Return state and newest token; cheap enough for every diffusion step."""
        key = self.keys.record(self.noun, record_id)
        state, token = self._call(self.redis.hmget(key, ["state", "token"]))
        return str(state or ""), int(token or 0)

    def states_and_tokens(self, ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Return state and newest token of several records, in one exchange with the server."""
        pipe = self.redis.pipeline(transaction=False)
        for record_id in ids:
            pipe.hmget(self.keys.record(self.noun, record_id), ["state", "token"])
        answers = self._call(pipe.execute()) if ids else []
        return {i: (str(s or ""), int(t or 0)) for i, (s, t) in zip(ids, answers, strict=True)}

    def ids(self, state: str) -> list[str]:
        """Return the ids of all records in `state`, oldest first."""
        return list(self._call(self.redis.zrange(self._index("state", state), 0, -1)))

    def count(self, state: str) -> int:
        """Return the number of records in `state`."""
        return int(self._call(self.redis.zcard(self._index("state", state))))

    def known(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that have a record."""
        if not ids:
            return set()
        scores = self._call(self.redis.zmscore(self._index("all"), list(ids)))
        return {name for name, score in zip(ids, scores, strict=True) if score is not None}

    def active(self, api_key: str) -> int:
        """Return the number of unfinished records of an API key."""
        return int(self._call(self.redis.zcard(self._index("active", api_key))))

    def page(
        self, *, state: str = "", kind: str = "", cursor: str = "", limit: int = 50
    ) -> Page[R]:
        """Return a page of records, newest first, of a state and a kind when these are given."""
        index = [self._index("state", state)] if state else []
        index += [self._index("kind", kind)] if kind else []
        source = index[0] if index else self._index("all")
        if len(index) == 2:
            source = f"{index[0]}:and:{kind}"
            self._call(self.redis.zinterstore(source, index))
            self._call(self.redis.expire(source, 60))
        top = f"({cursor}" if cursor else "+"
        ids = list(self._call(self.redis.zrevrangebylex(source, top, "-", 0, limit + 1)))
        more = ids[limit - 1] if len(ids) > limit else None
        total = int(self._call(self.redis.zcard(source)))
        return Page(self._load(ids[:limit]), more, total)

    def _load(self, ids: Sequence[str]) -> list[R]:
        pipe = self.redis.pipeline(transaction=False)
        for record_id in ids:
            pipe.hgetall(self.keys.record(self.noun, record_id))
        found = (self._decode(raw) for raw in pipe.execute())
        return [record for record in found if record is not None]

    def position(self, record_id: str) -> int | None:
        """Return the number of waiting records ahead of this one; None when it does not wait."""
        rank = self._call(self.redis.zrank(self._index("state", self.waiting), record_id))
        return None if rank is None else int(rank)

    def events(self, record_id: str, after: str = STREAM_START) -> list[tuple[str, str, Any]]:
        """Return the events after the entry `after`, each as (id, type, data)."""
        key = self.keys.events(self.noun, record_id)
        entries = self._call(self.redis.xrange(key, min=f"({after}"))
        return [(str(i), str(f["type"]), json.loads(f["data"])) for i, f in entries]

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
        """Move the record to state `to` and set `values`, if table and token allow.

        Raises:
            MoveRefused: If the table does not hold this move.
            LeaseLost: If `token` is no longer the newest.
        """
        self._run(scripts.MOVE, record_id, *self._move(to, token, terminal, values))

    def move_all(
        self, to: str, tokens: Mapping[str, int], *, terminal: bool, values: Mapping[str, Any]
    ) -> dict[str, Exception]:
        """Move records to state `to`, each by itself, in one exchange with the server.

        Arguments:
            to: The new state.
            tokens: By record.
            terminal: Whether they have ended.
            values: What to set, by record.

        Returns:
            Why a record was not moved, as `move` raises it, by record.
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
        """Take a record from a worker whose lease ran out: back to waiting, or to its end.

        Arguments:
            record_id: A record that seems abandoned.
            lost_workers: The record fails once so many workers were lost over it.
            problem: The reason, kept in the record.

        Returns:
            The new state, or `held` when the lease lives after all.
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
        self, record: R, *, kind: str, unique: Sequence[str] = (), lane: str = ""
    ) -> tuple[R, bool]:
        """Store a new record, or return the one that holds one of its `unique` keys.

        The first key that is held decides; those named before it, still free, then stand for the
        same record. A record in a lane waits there for its owner's turn.
        """
        values = record.model_dump(mode="json")
        keys = [self.keys.unique(self.noun, key) for key in unique]
        state, owner = str(values["state"]), str(values["api_key"])
        fields = json.dumps(_to_fields(values))
        known = self._run(
            scripts.CREATE,
            str(values["id"]),
            state,
            kind,
            owner,
            fields,
            self._event(state),
            lane,
            keys=keys,
        )
        return (record, True) if known == values["id"] else (self.get(known), False)

    # -- plumbing

    def _run(self, script: str, record_id: str, *args: Any, keys: Sequence[str] = ()) -> str:
        names, arguments = self._call_of(record_id, args)
        run = self.redis.register_script(script)
        return self._value(record_id, self._call(run(keys=[*names, *keys], args=arguments)))

    def _call_of(self, record_id: str, args: Sequence[Any]) -> tuple[list[str], list[Any]]:
        """Return the keys and arguments of a script about one record."""
        noun, names = self.noun, self.keys
        own = [f(noun, record_id) for f in (names.record, names.lease, names.events)]
        return own, [names.index(noun), record_id, names.channel, noun, *args]

    def _value(self, record_id: str, answer: Any) -> str:
        """Return the value in a script's answer; raise what it stands for if it is a refusal."""
        noun, (status, value) = self.noun, answer
        if status == "missing":
            raise NoSuchRecord(f"Expected the id of a {noun}; got '{record_id}'.", id=record_id)
        if status == "stale":
            raise LeaseLost(f"Another attempt holds {noun} '{record_id}'.", id=record_id)
        if status == "refused":
            raise MoveRefused(
                f"Expected {noun} '{record_id}' in a state that allows this; it is '{value}'.",
                id=record_id,
                state=value,
            )
        return str(value) if status != "held" else "held"

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
        """Return an answer; redis-py types each as possibly awaitable, which ours never is."""
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
