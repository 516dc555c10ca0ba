"""The write side of the observation store; its read side is `worker.jobs.observation_query`."""
