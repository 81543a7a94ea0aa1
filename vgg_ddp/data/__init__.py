"""Data sets: where they come from, how they are prepared and stored, and the order of their samples."""
