"""Receive observations from other centres, and announce results to them, over WIS2."""
