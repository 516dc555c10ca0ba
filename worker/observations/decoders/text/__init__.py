"""Decode alphanumeric bulletins: SYNOP, SHIP, TEMP, PILOT, METAR."""
