"""Entry point of `python -m vgg_ddp`: the command `vgg-ddp`."""

import sys

from vgg_ddp.cli import main

if __name__ == "__main__":
    sys.exit(main())
