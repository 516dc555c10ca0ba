"""Run the cycles: analyse every hour once its cut-off has passed, with any number of schedulers."""
