"""Make a published result again from its manifest, and tell whether it is the same."""
