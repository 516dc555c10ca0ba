"""Run the main job against a simulated truth and compare the results with it."""
