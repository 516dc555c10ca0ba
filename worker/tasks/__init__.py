"""Run Celery tasks, one module per queue, so that a worker imports only what its queue needs."""
