"""`appa demo`: a simulated truth is observed, sent over HTTP, assimilated and compared with itself."""
