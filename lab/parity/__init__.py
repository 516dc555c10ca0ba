"""Compare our components with arrays recorded from the authors' implementation."""
