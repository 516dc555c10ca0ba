"""Cycling: every hour analysed once its cut-off has passed, by any number of schedulers."""
