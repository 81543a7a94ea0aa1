"""What a run survives, at random: kills, signals, full disks, damage. See `__main__`."""
