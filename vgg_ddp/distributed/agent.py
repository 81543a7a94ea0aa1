"""torchrun's elastic agent, with ranks that are forked (`fork_server`) in place of processes that import torch each."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousHandler

from vgg_ddp.distributed.fork_server import ForkServer

INTERVAL = 0.05  # seconds between looks at the ranks


class ForkingAgent(SimpleElasticAgent):
    """Runs the ranks of this host once.

    Args:
        server: what they are forked from.
        variables, arguments: of each rank, beside torchrun's variables.
        meeting: where the agents of all hosts meet.
    """

    def __init__(
        self,
        server: ForkServer,
        ranks: int,
        variables: dict[str, str],
        arguments: list[str],
        meeting: RendezvousHandler,
    ) -> None:
        # No restarts: the agent would restart after every failure, and never resets its count.
        super().__init__(
            WorkerSpec("ranks", ranks, meeting, entrypoint=__name__, max_restarts=0, monitor_interval=INTERVAL)
        )
        self._server, self._variables, self._arguments = server, variables, arguments

    def codes(self) -> dict[int, int]:
        """Run the ranks; the exit codes of those that did not end well, by rank."""
        return {rank: failure.exitcode for rank, failure in self.run().failures.items()}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        shared = {
            "LOCAL_WORLD_SIZE": worker_group.spec.local_world_size,
            "GROUP_RANK": worker_group.group_rank,
            "GROUP_WORLD_SIZE": worker_group.group_world_size,
            "MASTER_ADDR": worker_group.master_addr,
            "MASTER_PORT": worker_group.master_port,
            "TORCHELASTIC_RUN_ID": worker_group.spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_USE_AGENT_STORE": True,
            "TORCHELASTIC_RESTART_COUNT": 0,
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", 1),
        }
        for worker in worker_group.workers:
            own = {"RANK": worker.global_rank, "LOCAL_RANK": worker.local_rank, "WORLD_SIZE": worker.world_size}
            environment = {name: str(value) for name, value in (shared | own).items()}
            self._server.fork(environment | self._variables, self._arguments)
        return {worker.local_rank: worker.local_rank for worker in worker_group.workers}

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._failures(worker_group):
            self._shutdown()
            return RunResult(WorkerState.FAILED, failures=self._failures(worker_group))
        if self._server.running():
            return RunResult(WorkerState.HEALTHY)
        return RunResult(WorkerState.SUCCEEDED, {worker.global_rank: None for worker in worker_group.workers})

    def _failures(self, worker_group: WorkerGroup) -> dict[int, ProcessFailure]:
        self._server.hear()
        by_rank = {worker.global_rank: self._server.ranks[worker.local_rank] for worker in worker_group.workers}
        return {
            number: ProcessFailure(local, rank.process, rank.code, "")
            for local, (number, rank) in enumerate(by_rank.items())
            if rank.code
        }

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        """Ask the ranks to end, and kill those that have not in `timeout` seconds; the supervisor may do so sooner."""
        self._server.hear()
        for process in self._server.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, death_sig)
        deadline = time.monotonic() + timeout
        while self._server.running():
            if time.monotonic() > deadline:
                deadline = math.inf
                for process in self._server.running():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process, signal.SIGKILL)  # each rank is the leader of a session
            time.sleep(INTERVAL)
            self._server.hear()
