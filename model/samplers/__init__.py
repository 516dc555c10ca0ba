"""Samplers that azula lacks, and progress, cancellation and seeded noise for its own."""
