"""Observation tables to BUFR messages."""
