"""The standing exercise: uploads and jobs under kills, full disks and cuts of the broker."""
