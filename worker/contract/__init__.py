"""State what gateway and workers agree on: records, kinds of job, queues, events, data folder."""
