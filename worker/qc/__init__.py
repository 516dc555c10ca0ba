"""Quality control, one check per file: `run.py` runs them, `checks.py` lists them in order."""
