"""The catalogue of published analyses as a STAC API."""
