"""How good each analysis is by what it did not see, by its departures and by its own balance."""
