"""Chaos test: uploads, jobs and cycles under kills, full disks and cuts of the broker."""
