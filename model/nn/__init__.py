"""Neural-network layers, independent of meteorology."""
