"""Observation tables to the forms in which the field exchanges them."""
