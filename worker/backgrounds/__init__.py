"""Load the background of a job: an earlier analysis, an uploaded first guess, or climatology."""
