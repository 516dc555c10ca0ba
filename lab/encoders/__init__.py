"""Encode observation tables in the file formats of data centres, for tests and rehearsals."""
