"""Bufr."""
