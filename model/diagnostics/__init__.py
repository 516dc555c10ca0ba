"""Judge states and ensembles: scores, spectra, balance, departures, model equivalents."""
