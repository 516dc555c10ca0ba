"""Define the contract of gateway and workers: records, kinds of job, queues, events, data folder."""
