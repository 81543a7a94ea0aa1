"""The engines side by side: the same step on the same two ranks by DDP and by DeepSpeed's stages, in turns.

    python -m benchmarks.engines [--stages 0 1 2 3] [--json FILE]

Each rank has one core and one thread (or a GPU). A ratio is of two neighbours in one round, DeepSpeed's images per second over
DDP's; its median is shown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec

from benchmarks.measurement import measuring, outcome
from benchmarks.measurement.ranks import Group, TrainingSteps
from vgg_ddp.config import Config

DDP = "ddp"


def configuration(network: str, batch: int, precision: str, engine: dict[str, Any]) -> Config:
    settings = {"network": network, "batch": batch, "precision": precision, **engine}
    return msgspec.convert(settings, Config)


def measure(
    network: str, batch: int, precision: str, stages: list[int], ranks: int, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for DDP and each of DeepSpeed's `stages`."""
    engines: dict[str, dict[str, Any]] = {DDP: {}}
    engines |= {f"deepspeed {stage}": {"engine": "deepspeed", "deepspeed": {"stage": stage}} for stage in stages}
    task = TrainingSteps(batch // ranks, together=True, steps=steps)
    with ExitStack() as stack:
        sides: dict[str, Callable[[], float]] = {}
        parts: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        for name, engine in engines.items():
            group = Group(ranks, configuration(network, batch, precision, engine))
            stack.callback(group.stop)

            def rate(group: Group = group, seen: list[dict[str, float]] = parts[name]) -> float:
                seen.append(group.run(task))
                return batch / seen[-1]["step"]

            sides[name] = rate
        rates = measuring.in_turns(sides, rounds)
    rows = []
    for name, values in rates.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(values, rates[DDP]))
        shares = {part: statistics.median(p[part] for p in parts[name]) for part in ("forward", "backward", "update")}
        about = {
            "name": f"{network} {batch} {precision} {name}",
            "engine": name,
            "network": network,
            "batch": batch,
            "precision": precision,
            "ranks": ranks,
        }
        rows.append({**about, **measuring.summary(values), "to_ddp": ratio, "seconds": shares})
        told = ", ".join(f"{part} {seconds:.3f} s" for part, seconds in shares.items())
        print(f"{name:<12} {statistics.median(values):8.1f} images/s   to DDP {ratio:.3f}   {told}", flush=True)
    return rows


def main() -> None:
    parser = measuring.parser_of("engines", __doc__)
    parser.add_argument("--network", default="vgg16", help="(default: vgg16)")
    parser.add_argument("--batch", type=int, default=128, help="images in a step, of all ranks (default: 128)")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16", "fp32"], help="(default: bf16)")
    parser.add_argument(
        "--stages", nargs="+", type=int, default=[0, 1, 2, 3], choices=range(4), help="of ZeRO (default: all)"
    )
    parser.add_argument("--ranks", type=int, default=2, help="(default: 2)")
    parser.add_argument("--steps", type=int, default=4, help="steps in a round (default: 4)")
    options = parser.parse_args()
    rows = measure(
        options.network, options.batch, options.precision, options.stages, options.ranks, options.steps, options.rounds
    )
    outcome.keep(options, "engines", rows, "images_per_second", f"images per second, {options.ranks} ranks", threads=1)


if __name__ == "__main__":
    measuring.exit_after(main)
