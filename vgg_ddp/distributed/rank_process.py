"""What every rank does first and last: join the others, and tell once what ended it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from vgg_ddp.distributed.memory import keep_freed_memory
from vgg_ddp.distributed.world import AgreedError, ToldError, World, joined
from vgg_ddp.errors import EXIT_LOST_RANK, EXIT_OK, EXIT_STOPPED, EXIT_USER_ERROR, StoppedOnRequest, UserError


def run(body: Callable[[World], None]) -> int:
    """Run `body` as one of the ranks; the exit code. Anything but a user's mistake or a requested stop is raised."""
    keep_freed_memory()
    try:
        return _run(body)
    finally:
        gc.collect()  # ends gloo's threads: one that still runs when the interpreter ends would abort the process


def _run(body: Callable[[World], None]) -> int:
    rank = int(os.environ.get("RANK", 0))
    try:
        with joined() as world:
            _tell_others(world, body)
    except ToldError:
        return EXIT_USER_ERROR
    except UserError as error:
        if rank == 0 or not isinstance(error, AgreedError):
            print(f"vgg-ddp: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except StoppedOnRequest:
        if rank == 0:
            print(
                "vgg-ddp: stopped on request, a checkpoint is saved; start again with resume=auto to continue",
                flush=True,
            )
        return EXIT_STOPPED
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        print(f"vgg-ddp: rank {rank} ends: another rank is gone", file=sys.stderr, flush=True)
        return EXIT_LOST_RANK
    return EXIT_OK


def leave(code: int) -> NoReturn:
    """End this process with `code`, whatever libraries' threads do: all is written and closed by now.

    Seen once in some dozens of starts: a thread that still ran while Python tore the process down aborted it, and a rank
    that had done its work ended with a signal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell_others(world: World, body: Callable[[World], None]) -> None:
    """Run `body`; a mistake that only this rank has met is told by this rank, and the others end without a word."""
    try:
        body(world)
    except AgreedError:
        raise
    except UserError:
        world.tell_failure()
        raise
    except RuntimeError as error:
        if _is_lost_connection(error) and world.failure_is_told():
            raise ToldError from None
        raise


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether gloo or NCCL says that another rank closed its connection: what went wrong is told there."""
    text = str(error).lower()
    return any(
        words in text for words in ("connection closed by peer", "connection reset by peer", "remote process exited")
    )
