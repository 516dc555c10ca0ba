"""Quality control of observation tables, in stages; see `run.py`."""
