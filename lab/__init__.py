"""Training, simulated experiments, parity, demo, chaos test and rehearsal; not imported by servers."""
