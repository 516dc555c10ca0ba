"""Tables of speed and skill; run with make bench."""
