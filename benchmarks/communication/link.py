"""Two ranks with a link of a given bandwidth, and the speed of each choice of communication over it."""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.communication.choices import ALONE, CHOICES
from benchmarks.communication.rank import Seen
from benchmarks.measurement import rounds
from benchmarks.measurement.two_hosts import Hosts, limit, one_host, two_hosts

LINKS = ("loopback", "10000", "1000", "100", "20")  # Mbit/s
QUIET = 0.05  # share of the cores that other processes may use in a round that counts
TOO_LONG = 20.0  # a step that takes more seconds than this is measured only once


class Ranks:
    """The two rank processes, in the namespaces of `hosts`."""

    def __init__(self, hosts: Hosts, cores: list[int]) -> None:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = str(probe.getsockname()[1])
        self._processes = []
        self.shared = hosts[0].interface == "lo"  # an interface that counts the bytes of both ranks
        for rank in (0, 1):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": str(rank) if self.shared else "0",
                "LOCAL_WORLD_SIZE": "2" if self.shared else "1",
                "MASTER_ADDR": hosts[0].address,
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": hosts[rank].interface,
                "OMP_NUM_THREADS": "1",
            }
            rank_process = [sys.executable, "-m", "benchmarks.communication.rank"]
            rank_process += [str(cores[rank]), hosts[rank].interface]
            self._processes.append(
                subprocess.Popen(
                    [*hosts[rank].inside, *rank_process],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

    def measure(self, order: dict[str, Any]) -> list[Seen]:
        """What the ranks measured: the first alone, or both."""
        asked = self._processes[:1] if order["choice"] == ALONE else self._processes
        for process in asked:
            assert process.stdin is not None
            print(json.dumps(order), file=process.stdin, flush=True)
        return [self._answer(process) for process in asked]

    def _answer(self, process: subprocess.Popen[str]) -> Seen:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("SEEN "):
                return Seen(**json.loads(line.removeprefix("SEEN ")))
        raise RuntimeError(f"a rank ended with exit code {process.wait()}")

    def processor_seconds(self) -> float:
        """Processor seconds of both processes so far."""
        ticks = 0
        for process in self._processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """End both processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait()


def busy_seconds(cores: list[int]) -> float:
    """Processor seconds that these cores have spent on any process so far."""
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in {f"cpu{core}" for core in cores}:
            user, nice, system, _, _, interrupts, soft = (int(field) for field in fields[:7])
            ticks += user + nice + system + interrupts + soft
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def hosts_with(link: str) -> Iterator[Hosts]:
    """Two hosts with this link between them."""
    if link == "loopback":
        with one_host() as hosts:
            yield hosts
    else:
        with two_hosts() as hosts:
            limit(hosts, float(link))
            yield hosts


def measure_link(options: argparse.Namespace, head: str, link: str, cores: list[int]) -> list[dict[str, Any]]:
    """A row for each choice over one link."""
    names = [name for name in options.choices if head == "paper" or "split_head" not in CHOICES[name]]
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in (ALONE, *names)}
    with ExitStack() as stack:
        hosts = stack.enter_context(hosts_with(link))
        ranks = Ranks(hosts, cores)
        stack.callback(ranks.end)
        for _ in range(options.rounds):
            for name in (ALONE, *names):
                before = seen[name]
                if before and before[0]["seconds"] > TOO_LONG:
                    continue
                slow = bool(before) and before[0]["seconds"] > 4
                order = {
                    "choice": name,
                    "head": head,
                    "network": options.network,
                    "precision": options.precision,
                    "image_size": options.image_size,
                    "local_batch": options.batch // 2,
                    "warm_up": 2 if not slow else 1,
                    "steps": options.steps if not slow else 1,
                }
                before.append(one_round(ranks, order, cores))
                print(f"  {link:>9} {head:<8} {name:<18} {json.dumps(before[-1])}", file=sys.stderr, flush=True)
    return to_rows(seen, options, head, link)


def one_round(ranks: Ranks, order: dict[str, Any], cores: list[int]) -> dict[str, float]:
    """Seconds of a step, bytes, and the share of the cores that other processes used meanwhile."""
    used = cores[:1] if order["choice"] == ALONE else cores
    busy, own, start = busy_seconds(used), ranks.processor_seconds(), time.perf_counter()
    answers = ranks.measure(order)
    wall = time.perf_counter() - start
    others = busy_seconds(used) - busy - (ranks.processor_seconds() - own)
    outer = CHOICES.get(order["choice"], {}).get("synchronise_every", 1)
    return {
        "seconds": max(s.step_seconds + s.synchronise_seconds / outer for s in answers),
        "synchronise_seconds": max(s.synchronise_seconds for s in answers),
        "processor_seconds": sum(s.processor_seconds for s in answers) / len(answers) / order["steps"],
        "bytes": sum(s.bytes for s in answers) / len(answers) / (2 if ranks.shared else 1),
        "others": max(0.0, others / (wall * len(used))),
    }


def to_rows(
    seen: dict[str, list[dict[str, float]]], options: argparse.Namespace, head: str, link: str
) -> list[dict[str, Any]]:
    """Medians over the rounds that no other process disturbed; over all rounds where `quiet_rounds` is 0."""
    rows = []
    for name, own in seen.items():
        pairs = [pair for pair in zip(own, seen[ALONE]) if all(round_["others"] < QUIET for round_ in pair)]
        quiet = len(pairs)
        pairs = pairs or list(zip(own, seen[ALONE]))
        efficiencies = [alone["seconds"] / round_["seconds"] for round_, alone in pairs]
        ranks = 1 if name == ALONE else 2
        rows.append(
            {
                "name": f"{options.network} {options.image_size}px {head} {link} {name}",
                "part": "speed",
                "choice": name,
                "head": head,
                "link": link,
                "network": options.network,
                "precision": options.precision,
                "image_size": options.image_size,
                "batch": options.batch // 2 * ranks,
                "images_per_second": ranks * options.batch // 2 / statistics.median(p[0]["seconds"] for p in pairs),
                **rounds.summary(efficiencies, "efficiency"),
                "megabytes_per_step": statistics.median(p[0]["bytes"] for p in pairs) / 1e6,
                "synchronise_seconds": statistics.median(p[0]["synchronise_seconds"] for p in pairs),
                "processor_seconds_per_step": statistics.median(p[0]["processor_seconds"] for p in pairs),
                "quiet_rounds": quiet,
                "seen": own,
            }
        )
    return rows
