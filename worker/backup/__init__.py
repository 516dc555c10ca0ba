"""Back up what an installation knows, restore it, and rebuild what Redis held from the disk."""
