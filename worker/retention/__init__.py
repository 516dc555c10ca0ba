"""What is kept for how long, and the removal of the rest."""
