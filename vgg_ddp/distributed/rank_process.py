"""The start and the end of a rank's process: joins the other ranks, reports an error once, chooses the exit code."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

from vgg_ddp.distributed.activity import VARIABLE, Activity, stopped
from vgg_ddp.distributed.devices import Devices
from vgg_ddp.distributed.memory import advice, keep_freed_memory, ran_out
from vgg_ddp.distributed.world import ReportedElsewhere, SharedUserError, World, joined
from vgg_ddp.errors import (
    EXIT_LOST_RANK,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    Signalled,
    StoppedOnRequest,
    UserError,
    signals_raise,
)
from vgg_ddp.run.console import complain, say

STOPPED = "stopped on request, a checkpoint is saved; start again with resume=auto to continue"


def run(body: Callable[[World], None], devices: Devices) -> int:
    """Run `body` as a rank; return its exit code. User errors, stops and lost connections are reported, not raised."""
    keep_freed_memory()
    activity = Activity.of_rank()
    try:
        with signals_raise():
            code = _run(body, devices, activity)
        if code == EXIT_OK:
            activity.enter("end")
        return code
    except Signalled as signalled:
        if VARIABLE not in os.environ and os.environ.get("RANK", "0") == "0":
            complain(f"vgg-ddp: {stopped(signalled.number, activity.seen().phase)}")
        return signalled.exit_code
    finally:
        gc.collect()  # ends gloo's threads: one that still runs at the interpreter's end aborts the process


def _run(body: Callable[[World], None], devices: Devices, activity: Activity) -> int:
    try:
        with joined(devices=devices, activity=activity) as world:
            _run_reporting(world, body)
    except (ReportedElsewhere, SharedUserError):
        return EXIT_USER_ERROR
    except UserError as error:
        complain(f"vgg-ddp: {error}")
        return EXIT_USER_ERROR
    except StoppedOnRequest:
        return EXIT_STOPPED
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        if VARIABLE not in os.environ:  # else the supervisor says why
            complain(f"vgg-ddp: rank {os.environ.get('RANK')} ends: another rank is gone")
        return EXIT_LOST_RANK
    return EXIT_OK


def _run_reporting(world: World, body: Callable[[World], None]) -> None:
    """Run `body`. Rank 0 says what ends all ranks; a rank with an error of its own tells the others, which end silently."""
    try:
        body(world)
    except (SharedUserError, StoppedOnRequest) as ending:
        if world.is_main and isinstance(ending, SharedUserError):
            complain(f"vgg-ddp: {ending}")
        elif world.is_main:
            say(f"vgg-ddp: {STOPPED}")
        world.barrier()  # the supervisor ends all ranks once one has ended: first let rank 0 report
        raise
    except UserError:
        world.announce_failure()
        raise
    except (RuntimeError, MemoryError) as error:
        if ran_out(error):
            world.announce_failure()
            raise UserError(advice(world)) from None
        if _is_lost_connection(error) and world.failure_announced():
            raise ReportedElsewhere from None
        raise


def _is_lost_connection(error: Exception) -> bool:
    """Whether gloo or NCCL says that another rank closed its connection: that rank reports the cause."""
    text = str(error).lower()
    messages = ("connection closed by peer", "connection reset by peer", "remote process exited")
    return any(message in text for message in messages)
