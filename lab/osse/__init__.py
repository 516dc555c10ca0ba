"""Osse."""
