"""Apply the retention policy: plan what to delete, and delete it."""
