"""The checks of the server's setup, on servers set up well and badly."""

from worker.contract.redis_server import connect, redis_health


def test_a_server_set_up_well_gives_no_warning(stores):
    health = redis_health(stores.redis)
    assert (health.reachable, health.warnings) == (True, ())
    assert health.used_memory > 0


def test_eviction_and_no_append_only_file_are_told_with_what_to_set(own_broker):
    redis = connect(own_broker.url)
    redis.config_set("maxmemory-policy", "allkeys-lru")
    redis.config_set("appendonly", "no")
    first, second = redis_health(redis).warnings
    assert "CONFIG SET maxmemory-policy noeviction" in first
    assert "CONFIG SET appendonly yes" in second
    redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("appendonly", "yes")
    redis.config_set("appendfsync", "no")
    (only,) = redis_health(redis).warnings
    assert "CONFIG SET appendfsync everysec" in only
    redis.close()


def test_a_server_that_is_gone_is_unreachable(own_broker):
    redis = connect(own_broker.url, retries=0)
    own_broker.kill()
    health = redis_health(redis)
    assert not health.reachable
    assert "does not answer" in health.warnings[0]
    redis.close()


def test_calls_outlive_a_restart_of_the_server(own_broker):
    redis = connect(own_broker.url, retries=20)
    redis.set("kept", "yes")
    own_broker.kill()
    own_broker.start()
    assert redis.get("kept") == "yes"
    redis.close()
