"""Say which fields can be shown, how they are derived and drawn, and what can be asked for."""
