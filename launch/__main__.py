"""Entry point of `python -m launch`."""

from .command_line import main

main()
