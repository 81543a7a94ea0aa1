"""What every rank does first and last: memory settings, joining the others, telling a user's mistake once."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

from vgg_ddp.distributed import AgreedError, World, joined
from vgg_ddp.errors import EXIT_OK, EXIT_STOPPED, EXIT_USER_ERROR, StoppedOnRequest, UserError


def run(body: Callable[[World], None]) -> int:
    """Run `body` as one of the ranks; the exit code. Anything but a user's mistake or a requested stop is raised."""
    keep_freed_memory()
    is_main = True
    try:
        with joined() as world:
            is_main = world.is_main
            body(world)
    except UserError as error:
        if is_main or not isinstance(error, AgreedError):
            print(f"vgg-ddp: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except StoppedOnRequest:
        if is_main:
            print(
                "vgg-ddp: stopped on request, a checkpoint is saved; start again with resume=auto to continue",
                flush=True,
            )
        return EXIT_STOPPED
    return EXIT_OK


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks instead of giving them back to the kernel.

    Every step frees and takes the same large activations; given back, each comes again page by page: 85,000 page faults
    in a VGG-11 step of 256 images, none with this.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    mallopt(M_MMAP_THRESHOLD, 2**30)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
