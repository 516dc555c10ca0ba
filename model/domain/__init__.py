"""The words of the science: variables, grids, windows, observations, errors. No torch here."""
