"""Encode observation tables as BUFR messages for tests and rehearsals."""
