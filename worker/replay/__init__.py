"""Making a published result again from its manifest, and saying whether it is the same."""
