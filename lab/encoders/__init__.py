"""Encode observation tables in the forms of files that centres send, for tests and rehearsals."""
