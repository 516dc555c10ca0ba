"""Fill the observation store from other centres, and announce results to them."""
