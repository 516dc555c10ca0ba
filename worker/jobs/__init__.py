"""The contract of the worker with those who ask it for work. No torch and no Celery app here."""
