"""Scores, spectra, balance, departures."""
