"""Sections of the report of a run: each is a template, NAME.html.j2; the modules have the values that
they are filled with."""
