"""Decoders of observation files; `worker.observations.formats` lists them."""
