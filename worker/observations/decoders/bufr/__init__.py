"""Decode WMO BUFR messages by families of reports; see `decode.py`."""
