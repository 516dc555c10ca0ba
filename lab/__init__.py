"""Make and judge: training, simulated experiments, parity, demo and rehearsal; never imported by servers."""
