"""Compose the system: the `appa` command and the one-machine stack."""
