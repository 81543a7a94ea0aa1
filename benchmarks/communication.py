"""What two ranks lose by talking: images per second of each way, on loopback and over links of 20 Mbit/s to 10 Gbit/s.

    python -m benchmarks.communication [--heads compact paper] [--links loopback 1000] [--choices plain bf16] [--json FILE]

Each rank has one core and one thread. Efficiency is images per second over twice those of one rank alone on one core, measured
in the same round. The ways take turns. Rounds in which other processes used more than a share of the two cores are left
out, and counted. Outer steps are measured as a step without and a synchronisation by itself, and put together.

    python -m benchmarks.communication --train DATASET [--json FILE]

trains a small network with each way, and tells the steps to a fixed training loss and the test accuracy after the same number
of steps, for several seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.measuring import machine, parser_of
from benchmarks.two_hosts import Hosts, one_host, two_hosts, why_not
from vgg_ddp import builders, engines
from vgg_ddp.config import Config
from vgg_ddp.distributed import World, joined
from vgg_ddp.memory import keep_freed_memory
from vgg_ddp.preprocess import Preprocess

ALONE = "one rank"
CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bucket auto": {"bucket_mb": "auto"},
    "bf16": {"compression": "bf16"},
    "powersgd 2": {"compression": "powersgd", "powersgd_warmup_steps": 0, "powersgd_rank": 2},
    "powersgd 4": {"compression": "powersgd", "powersgd_warmup_steps": 0, "powersgd_rank": 4},
    "local SGD 16": {"synchronise_every": 16, "compression": "bf16"},
    "local SGD 128": {"synchronise_every": 128, "compression": "bf16"},
    "DiLoCo 16": {
        "synchronise_every": 16,
        "outer_learning_rate": 0.7,
        "outer_momentum": 0.9,
        "compression": "bf16",
    },
    "split": {"split_head": "all"},
    "split, bf16": {"split_head": "all", "compression": "bf16"},
    "split, powersgd 2": {
        "split_head": "all",
        "compression": "powersgd",
        "powersgd_warmup_steps": 0,
        "powersgd_rank": 2,
    },
}
LINKS = ("loopback", "10000", "1000", "100", "20")  # Mbit/s
LOGGED = 16  # steps of a training whose mean loss is looked at
QUIET = 0.05  # share of the cores that other processes may use in a round that counts
TOO_LONG = 20.0  # seconds of a step after which it is measured once


# A rank: a process that takes what to measure from its standard input, a line each, and writes what it saw.


@dataclasses.dataclass
class Seen:
    """What one rank saw: seconds of a step and of a synchronisation, processor seconds of all, bytes sent in a step."""

    step_seconds: float
    synchronise_seconds: float
    processor_seconds: float
    bytes: float


def rank_main(options: argparse.Namespace) -> None:
    keep_freed_memory()
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    with joined(timedelta(minutes=30)) as world:
        for line in sys.stdin:
            order = json.loads(line)
            seen = measure(
                order, world if order["choice"] != ALONE else World(0, 1, 0, 1, world.device), options.interface
            )
            print("SEEN", json.dumps(dataclasses.asdict(seen)), flush=True)


def measure(order: dict[str, Any], world: World, interface: str) -> Seen:
    config = msgspec.convert(
        {
            "network": order["network"],
            "batch": order["local_batch"] * world.size,
            "model": {"head": order["head"]},
            "data": {"image_size": order["image_size"]},
            "communication": CHOICES.get(order["choice"], {}),
        },
        Config,
    )
    network = builders.build_network(config, 10, world.device)
    preprocess = Preprocess([128.0] * 3, [64.0] * 3, config.channels_last)
    engine = engines.build(config, network, world)
    generator = torch.Generator().manual_seed(world.rank)
    shape = (order["local_batch"], order["image_size"], order["image_size"], 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (order["local_batch"],), generator=generator)

    def step() -> None:
        loss, _ = engine.forward(preprocess(images), labels, last=True)
        engine.backward(loss)
        engine.step()

    for _ in range(order["warm_up"]):
        step()
    engine.synchronise()
    world.barrier()
    processor, sent, start = processor_seconds(), sent_bytes(interface), time.perf_counter()
    for _ in range(order["steps"]):
        step()
    world.barrier()
    stepped = time.perf_counter()
    sent_in_steps = sent_bytes(interface)
    engine.synchronise()
    world.barrier()
    end = time.perf_counter()
    in_synchronise = sent_bytes(interface) - sent_in_steps
    every = config.communication.synchronise_every
    return Seen(
        (stepped - start) / order["steps"],
        end - stepped if every > 1 else 0.0,
        processor_seconds() - processor,
        (sent_in_steps - sent) / order["steps"] + (in_synchronise / every if every > 1 else 0.0),
    )


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def sent_bytes(interface: str) -> int:
    """What the interface of this network namespace has sent so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, fields = line.partition(":")
        if name.strip() == interface:
            return int(fields.split()[8])
    return 0


# The driver.


class Ranks:
    """The two rank processes of one place."""

    def __init__(self, hosts: Hosts, cores: list[int]) -> None:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = str(probe.getsockname()[1])
        self._processes = []
        self.shared = hosts.interface == "lo"  # whose bytes are those of both ranks
        for rank in (0, 1):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_RANK": str(rank) if self.shared else "0",
                "LOCAL_WORLD_SIZE": "2" if self.shared else "1",
                "MASTER_ADDR": hosts.address,
                "MASTER_PORT": port,
                "GLOO_SOCKET_IFNAME": hosts.interface,
                "OMP_NUM_THREADS": "1",
            }
            words = [
                sys.executable,
                "-m",
                "benchmarks.communication",
                "--core",
                str(cores[rank]),
                "--interface",
                hosts.interface,
            ]
            self._processes.append(
                subprocess.Popen(
                    [*hosts.command(rank), *words],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

    def measure(self, order: dict[str, Any]) -> list[Seen]:
        """What the ranks that take part saw: the first alone, or both."""
        taking_part = self._processes[:1] if order["choice"] == ALONE else self._processes
        for process in taking_part:
            assert process.stdin is not None
            print(json.dumps(order), file=process.stdin, flush=True)
        return [self._answer(process) for process in taking_part]

    def _answer(self, process: subprocess.Popen[str]) -> Seen:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("SEEN "):
                return Seen(**json.loads(line.removeprefix("SEEN ")))
        raise RuntimeError(f"a rank ended with exit code {process.wait()}")

    def processor_seconds(self) -> float:
        """What both processes have used so far."""
        ticks = 0
        for process in self._processes:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
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
def place(link: str) -> Iterator[Hosts]:
    """Where two ranks have this link between them."""
    if link == "loopback":
        with one_host() as hosts:
            yield hosts
    else:
        with two_hosts() as hosts:
            hosts.limit(float(link))
            yield hosts


def measure_link(options: argparse.Namespace, head: str, link: str, cores: list[int]) -> list[dict[str, Any]]:
    """One row for each way of talking over one link."""
    names = [name for name in options.choices if head == "paper" or "split_head" not in CHOICES[name]]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in (ALONE, *names)}
    with ExitStack() as stack:
        hosts = stack.enter_context(place(link))
        ranks = Ranks(hosts, cores)
        stack.callback(ranks.end)
        for _ in range(options.rounds):
            for name in (ALONE, *names):
                before = rounds[name]
                if before and before[0]["seconds"] > TOO_LONG:
                    continue
                slow = bool(before) and before[0]["seconds"] > 4
                order = {
                    "choice": name,
                    "head": head,
                    "network": options.network,
                    "image_size": options.image_size,
                    "local_batch": options.batch // 2,
                    "warm_up": 2 if not slow else 1,
                    "steps": options.steps if not slow else 1,
                }
                before.append(one_round(ranks, order, cores))
                print(f"  {link:>9} {head:<8} {name:<18} {json.dumps(before[-1])}", file=sys.stderr, flush=True)
    return rows(rounds, options, head, link)


def one_round(ranks: Ranks, order: dict[str, Any], cores: list[int]) -> dict[str, float]:
    """Seconds of a step, bytes, and the share of the cores that went to others from the order to the answer."""
    used = cores[:1] if order["choice"] == ALONE else cores
    busy, own, start = busy_seconds(used), ranks.processor_seconds(), time.perf_counter()
    seen = ranks.measure(order)
    wall = time.perf_counter() - start
    others = busy_seconds(used) - busy - (ranks.processor_seconds() - own)
    outer = CHOICES.get(order["choice"], {}).get("synchronise_every", 1)
    return {
        "seconds": max(s.step_seconds + s.synchronise_seconds / outer for s in seen),
        "synchronise_seconds": max(s.synchronise_seconds for s in seen),
        "processor_seconds": sum(s.processor_seconds for s in seen) / len(seen) / order["steps"],
        "bytes": sum(s.bytes for s in seen) / len(seen) / (2 if ranks.shared else 1),
        "others": max(0.0, others / (wall * len(used))),
    }


def rows(
    rounds: dict[str, list[dict[str, float]]], options: argparse.Namespace, head: str, link: str
) -> list[dict[str, Any]]:
    """Medians over the rounds that others left alone; over all where those are none, which `quiet_rounds` tells."""
    found = []
    for name, seen in rounds.items():
        pairs = [pair for pair in zip(seen, rounds[ALONE]) if all(round_["others"] < QUIET for round_ in pair)]
        quiet = len(pairs)
        pairs = pairs or list(zip(seen, rounds[ALONE]))
        efficiencies = [alone["seconds"] / round_["seconds"] for round_, alone in pairs]
        ranks = 1 if name == ALONE else 2
        found.append(
            {
                "part": "speed",
                "choice": name,
                "head": head,
                "link": link,
                "network": options.network,
                "image_size": options.image_size,
                "batch": options.batch // 2 * ranks,
                "images_per_second": ranks * options.batch // 2 / statistics.median(p[0]["seconds"] for p in pairs),
                "efficiency": statistics.median(efficiencies),
                "efficiency_least": min(efficiencies),
                "efficiency_most": max(efficiencies),
                "megabytes_per_step": statistics.median(p[0]["bytes"] for p in pairs) / 1e6,
                "synchronise_seconds": statistics.median(p[0]["synchronise_seconds"] for p in pairs),
                "processor_seconds_per_step": statistics.median(p[0]["processor_seconds"] for p in pairs),
                "rounds": len(pairs),
                "quiet_rounds": quiet,
                "all": seen,
            }
        )
    return found


# Training: what the choices do to the result.


def train(options: argparse.Namespace, cores: list[int]) -> list[dict[str, Any]]:
    """One row for each way and seed: steps to the loss, and the test accuracy at the end. Two ranks, no link between."""
    found = []
    for seed in range(options.seeds):
        for name in options.choices:
            if "split_head" in CHOICES[name]:  # the same steps as without it
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                words = [
                    *training_words(options),
                    f"run.dir={run}",
                    f"seed={seed}",
                    *communication_words(name, options),
                ]
                command = [sys.executable, "-m", "vgg_ddp", "train", *words]
                pinned = {"preexec_fn": lambda: os.sched_setaffinity(0, cores)}
                subprocess.run(command, check=True, capture_output=True, **pinned)  # type: ignore[call-overload]
                losses = [
                    row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
                    if row["scope"] == "steps"
                ]  # fmt: skip
                accuracy = json.loads((run / "evaluation/summary.json").read_text())["accuracy"]
            reached = [row["step"] for row in losses if row["loss"] < options.loss]
            row = {
                "part": "training",
                "choice": name,
                "seed": seed,
                "steps": options.train_steps,
                "loss": options.loss,
                "steps_to_loss": reached[0] if reached else None,
                "losses": [[row["step"], round(row["loss"], 4)] for row in losses],
                "test_accuracy": accuracy,
            }
            print(f"  {json.dumps(row)}", file=sys.stderr, flush=True)
            found.append(row)
    return found


def training_words(options: argparse.Namespace) -> list[str]:
    """VGG-11 on images of 16 pixels, in the quickstart's recipe."""
    return [
        "configs/quickstart.yaml",
        f"data.source={options.train}",
        "data.train_sizes=[]",
        "data.image_size=16",
        "nproc=2",
        "threads=1",
        "epochs=1e-9",
        f"min_steps={options.train_steps}",
        f"log.every_steps={LOGGED}",
    ]


def communication_words(name: str, options: argparse.Namespace) -> list[str]:
    """The configuration of a way; PowerSGD begins after a tenth of the steps."""
    keys = dict(CHOICES[name])
    if "powersgd_warmup_steps" in keys:
        keys["powersgd_warmup_steps"] = options.train_steps // 10
    return [f"communication.{key}={value}" for key, value in keys.items()]


def main() -> None:
    parser = parser_of("communication", __doc__)
    parser.add_argument("--heads", nargs="+", default=["compact", "paper"], choices=["compact", "paper"])
    parser.add_argument("--links", nargs="+", default=list(LINKS), help="loopback, or Mbit/s (default: %(default)s)")
    parser.add_argument("--choices", nargs="+", default=list(CHOICES), choices=list(CHOICES))
    parser.add_argument("--network", default="vgg16")
    parser.add_argument("--image-size", type=int, default=32, help="pixels (default: 32)")
    parser.add_argument("--batch", type=int, default=256, help="images in a step of both ranks (default: 256)")
    parser.add_argument("--steps", type=int, default=3, help="steps in a round (default: 3)")
    parser.add_argument("--train", help="a dataset: train on it with each way, instead of measuring speed")
    parser.add_argument("--train-steps", type=int, default=512, help="steps of a training (default: 512)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way (default: 3)")
    parser.add_argument("--loss", type=float, default=1.2, help="training loss to reach (default: 1.2)")
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)  # set in the processes of the ranks
    parser.add_argument("--interface", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.core is not None:
        rank_main(options)
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("two cores are needed, one for each rank")
    if options.train:
        add(options.json, train(options, cores))
        return
    lacking = why_not()
    if lacking:
        parser.error(lacking)
    for head in options.heads:
        for link in options.links:
            found = measure_link(options, head, link, cores)
            for row in found:
                print(
                    f"{link:>9} {head:<8} {row['choice']:<18} {row['images_per_second']:7.1f} images/s  efficiency "
                    f"{row['efficiency']:.3f} ({row['efficiency_least']:.3f} to {row['efficiency_most']:.3f})  "
                    f"{row['megabytes_per_step']:8.2f} MB a step",
                    flush=True,
                )
            add(options.json, found)


def add(path: Path | None, found: list[dict[str, Any]]) -> None:
    """Put rows into the file, in place of those that tell of the same thing."""
    if path is None:
        return
    told = ("part", "choice", "head", "link", "network", "image_size", "seed", "steps")
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {json.dumps([row.get(key) for key in told]): row for row in [*old, *found]}
    command = " ".join(["python -m benchmarks.communication", *sys.argv[1:]])
    path.write_text(
        json.dumps({"machine": machine(1), "command": command, "rows": list(merged.values())}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
