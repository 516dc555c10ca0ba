"""Store webhooks and their deliveries in Redis: all that must outlive a scheduler.

Due times of deliveries are in one sorted set. Claiming a delivery moves its due time ahead by a lease,
so that it is claimed again if the sender dies: messages are delivered at least once.
"""

import time
from datetime import UTC, datetime
from typing import Any, Final

from redis import Redis

from model.domain.errors import InvalidInput
from worker.contract.events import STREAM_START, EventLog, LoggedEvent, StreamId
from worker.contract.record_store import MoveRefused, NoSuchRecord
from worker.contract.redis_server import Keyspace
from worker.contract.webhooks import Attempt, Delivery, DeliveryState, Webhook

__all__ = ["MAX_DELIVERIES", "MAX_WEBHOOKS", "WebhookStore"]

MAX_WEBHOOKS: Final = 100
MAX_DELIVERIES: Final = 200
"""Deliveries stored for each webhook; older ones are dropped."""

REMEMBERED_SECONDS: Final = 86_400
"""Seconds for which an idempotency key is remembered."""

_CREATE = """
-- KEYS: webhooks, unique key or none. ARGV: 1 id, 2 webhook, 3 limit, 4 seconds
if #KEYS == 2 then
  local known = redis.call('GET', KEYS[2])
  if known and redis.call('HEXISTS', KEYS[1], known) == 1 then return known end
end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then return '' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if #KEYS == 2 then redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[4]) end
return ARGV[1]
"""

_QUEUE = """
-- KEYS: webhooks, deliveries, order, due. ARGV: 1 webhook, 2 event, 3 delivery, 4 now, 5 limit
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3]) == 0 then return 0 end
redis.call('ZADD', KEYS[3], ARGV[4], ARGV[2])
redis.call('ZADD', KEYS[4], ARGV[4], ARGV[1] .. '|' .. ARGV[2])
for _, old in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1 - ARGV[5])) do
  redis.call('HDEL', KEYS[2], old)
  redis.call('ZREM', KEYS[3], old)
  redis.call('ZREM', KEYS[4], ARGV[1] .. '|' .. old)
end
return 1
"""

_CLAIM = """
-- KEYS: due. ARGV: 1 now, 2 until, 3 limit
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, member in ipairs(due) do redis.call('ZADD', KEYS[1], ARGV[2], member) end
return due
"""

_SETTLE = """
-- KEYS: deliveries, due. ARGV: 1 member, 2 event, 3 delivery, 4 next time or ''
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
if ARGV[4] == '' then redis.call('ZREM', KEYS[2], ARGV[1])
else redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1]) end
return 1
"""

_RETRY = """
-- KEYS: deliveries, due. ARGV: 1 member, 2 event, 3 delivery as read, 4 delivery, 5 now
if redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[4])
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
return 1
"""


class WebhookStore:
    """Subscriptions, messages and when they are due.

    Arguments:
        redis: The server.
        keys: Names of keys.
        events: The log that webhooks are served from.
    """

    def __init__(self, redis: Redis, keys: Keyspace, events: EventLog) -> None:
        self.redis = redis
        self.keys = keys
        self.events = events

    # -- subscriptions

    def create(self, webhook: Webhook, *, unique_key: str = "") -> tuple[Webhook, bool]:
        """Store a subscription to the events from now on.

        Arguments:
            webhook: The webhook to create.
            unique_key: The caller's idempotency key, remembered for a day: no second webhook is
                created under it while the first one exists.

        Returns:
            The webhook under that key, and whether it was created now.

        Raises:
            InvalidInput: If there are `MAX_WEBHOOKS` already.
        """
        webhook = webhook.model_copy(update={"since": self.events.newest()})
        unique = [self.keys.unique("webhook", unique_key)] if unique_key else []
        run = self.redis.register_script(_CREATE)
        known = self._call(
            run(
                keys=[self.keys.webhooks, *unique],
                args=[webhook.id, webhook.model_dump_json(), MAX_WEBHOOKS, REMEMBERED_SECONDS],
            )
        )
        if not known:
            raise InvalidInput(
                f"Expected fewer than {MAX_WEBHOOKS} webhooks; delete one that is not used.",
                field="url",
            )
        return (webhook, True) if known == webhook.id else (self.get(str(known)), False)

    def all(self) -> list[Webhook]:
        """Return all subscriptions, disabled ones included, oldest first."""
        texts = self._call(self.redis.hvals(self.keys.webhooks))
        return sorted((Webhook.model_validate_json(t) for t in texts), key=lambda w: w.id)

    def get(self, webhook_id: str) -> Webhook:
        """Return the subscription with the id `webhook_id`.

        Raises:
            NoSuchRecord: If there is none.
        """
        text = self._call(self.redis.hget(self.keys.webhooks, webhook_id))
        if text is None:
            raise NoSuchRecord(f"Expected the id of a webhook; got '{webhook_id}'.", id=webhook_id)
        return Webhook.model_validate_json(text)

    def delete(self, webhook_id: str) -> Webhook:
        """Delete a subscription and its pending deliveries.

        Raises:
            NoSuchRecord: If there is none.
        """
        webhook = self.get(webhook_id)
        pipe = self.redis.pipeline()
        pipe.hdel(self.keys.webhooks, webhook_id)
        pipe.delete(self.keys.deliveries(webhook_id), self.keys.delivery_order(webhook_id))
        pipe.execute()
        return webhook

    def disable(self, webhook_id: str, reason: str) -> None:
        """Stop deliveries to a webhook, for a reason that is stored with it."""
        webhook = self.get(webhook_id)
        self._put(webhook.model_copy(update={"disabled": reason}))

    def _put(self, webhook: Webhook) -> None:
        self._call(self.redis.hset(self.keys.webhooks, webhook.id, webhook.model_dump_json()))

    # -- messages

    def fan_out(self, limit: int = 500) -> int:
        """Queue a delivery of each new event to each webhook subscribed to it; idempotent."""
        cursor = str(self._call(self.redis.get(self.keys.webhook_cursor)) or STREAM_START)
        fresh = self.events.after(cursor, limit)
        if not fresh:
            return 0
        webhooks = [webhook for webhook in self.all() if not webhook.disabled]
        queued = 0
        for entry, event in fresh:
            for webhook in webhooks:
                if event.type in webhook.events and StreamId.parse(entry) > StreamId.parse(
                    webhook.since
                ):
                    queued += self._queue(webhook, event)
        self._call(self.redis.set(self.keys.webhook_cursor, fresh[-1][0]))
        return queued

    def _queue(self, webhook: Webhook, event: LoggedEvent) -> int:
        delivery = Delivery(
            event_id=event.id,
            webhook_id=webhook.id,
            type=event.type,
            body=event.model_dump_json(),
        )
        names = (self.keys.deliveries(webhook.id), self.keys.delivery_order(webhook.id))
        run = self.redis.register_script(_QUEUE)
        return int(
            self._call(
                run(
                    keys=[self.keys.webhooks, *names, self.keys.webhooks_due],
                    args=[
                        webhook.id,
                        event.id,
                        delivery.model_dump_json(),
                        time.time(),
                        MAX_DELIVERIES,
                    ],
                )
            )
        )

    def waiting(self) -> int:
        """Return the number of pending deliveries."""
        return int(self._call(self.redis.zcard(self.keys.webhooks_due)))

    def claim(self, limit: int, lease_seconds: float) -> list[tuple[Webhook, Delivery]]:
        """Return deliveries that are due now, and lease them to the caller for `lease_seconds`."""
        now = time.time()
        run = self.redis.register_script(_CLAIM)
        members = self._call(
            run(keys=[self.keys.webhooks_due], args=[now, now + lease_seconds, limit])
        )
        claimed = []
        for member in members:
            webhook_id, _, event_id = str(member).partition("|")
            webhook = self._call(self.redis.hget(self.keys.webhooks, webhook_id))
            delivery = self._call(self.redis.hget(self.keys.deliveries(webhook_id), event_id))
            if webhook is None or delivery is None:  # deleted meanwhile
                self._call(self.redis.zrem(self.keys.webhooks_due, member))
                continue
            pair = Webhook.model_validate_json(webhook), Delivery.model_validate_json(delivery)
            claimed.append(pair)
        return claimed

    def settle(
        self, delivery: Delivery, attempt: Attempt, state: DeliveryState, pause: float | None
    ) -> Delivery:
        """Store the outcome of an attempt, and when the next one is due.

        Arguments:
            delivery: The claimed delivery.
            attempt: What happened.
            state: The new state.
            pause: Seconds to the next attempt; None when there is none.
        """
        due = None if pause is None else time.time() + pause
        update = {
            "attempts": [*delivery.attempts, attempt],
            "state": state,
            "next_attempt": None if due is None else datetime.fromtimestamp(due, UTC),
        }
        delivery = delivery.model_copy(update=update)
        member = f"{delivery.webhook_id}|{delivery.event_id}"
        run = self.redis.register_script(_SETTLE)
        self._call(
            run(
                keys=[self.keys.deliveries(delivery.webhook_id), self.keys.webhooks_due],
                args=[
                    member,
                    delivery.event_id,
                    delivery.model_dump_json(),
                    "" if due is None else due,
                ],
            )
        )
        return delivery

    def retry(self, webhook_id: str, event_id: str) -> Delivery:
        """Queue a delivery that was given up, with all its attempts before it; see `Delivery.earlier`.

        The message, its id included, is unchanged. One that is pending is returned as it is.

        Raises:
            NoSuchRecord: If there is no such webhook, or no such message is kept.
            MoveRefused: If the message was delivered, or the webhook is disabled.
        """
        webhook, names = self.get(webhook_id), self.keys.deliveries(webhook_id)
        run = self.redis.register_script(_RETRY)
        while True:
            text = self._call(self.redis.hget(names, event_id))
            if text is None:
                raise NoSuchRecord(
                    f"Expected the event of one of the last {MAX_DELIVERIES} messages of webhook "
                    f"'{webhook_id}'; got '{event_id}'.",
                    id=event_id,
                )
            delivery = Delivery.model_validate_json(text)
            if delivery.state is DeliveryState.PENDING:
                return delivery
            if delivery.state is DeliveryState.DELIVERED:
                raise MoveRefused(
                    f"Expected a message that was given up; '{event_id}' is delivered.",
                    id=event_id,
                    state=delivery.state.value,
                )
            if webhook.disabled:
                raise MoveRefused(
                    f"Expected a webhook that is not disabled; '{webhook_id}' is: "
                    f"{webhook.disabled}. Remove it and add it again.",
                    id=webhook_id,
                )
            now = time.time()
            delivery = delivery.model_copy(
                update={
                    "state": DeliveryState.PENDING,
                    "earlier": len(delivery.attempts),
                    "next_attempt": datetime.fromtimestamp(now, UTC),
                }
            )
            arguments = [
                f"{webhook_id}|{event_id}",
                event_id,
                text,
                delivery.model_dump_json(),
                now,
            ]
            if self._call(run(keys=[names, self.keys.webhooks_due], args=arguments)):
                return delivery

    def deliveries(self, webhook_id: str, limit: int = 50) -> list[Delivery]:
        """Return the newest deliveries of a webhook.

        Raises:
            NoSuchRecord: If there is no such webhook.
        """
        self.get(webhook_id)
        order = self.keys.delivery_order(webhook_id)
        ids = list(self._call(self.redis.zrevrange(order, 0, limit - 1)))
        if not ids:
            return []
        texts = self._call(self.redis.hmget(self.keys.deliveries(webhook_id), ids))
        return [Delivery.model_validate_json(text) for text in texts if text is not None]

    @staticmethod
    def _call(result: Any) -> Any:
        """Return a reply; redis-py types replies as possibly awaitable, which ours never are."""
        return result
