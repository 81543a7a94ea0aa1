"""Sections of the report of a run: each module has the values that its sections of run.html.j2 are filled with."""
