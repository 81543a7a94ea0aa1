"""What the machine is, and the rates that its device reaches by itself: a large matrix product in each precision, a large copy.

python -m benchmarks.gpu_session.environment [--precisions bf16 fp32] [--json FILE]
"""

from __future__ import annotations

import shutil
import subprocess

import torch

from benchmarks.measurement import command, rounds
from benchmarks.measurement.device_speed import DTYPES, copy, matrix_product
from vgg_ddp.distributed.world import device_of


def main() -> None:
    """Print what the driver tells, measure, print and keep the rows."""
    parser = command.parser("gpu_session.environment", __doc__)
    parser.add_argument("--precisions", nargs="+", default=list(DTYPES), choices=list(DTYPES), help="(default: all)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if shutil.which("nvidia-smi"):
        for words in (["-q"], ["topo", "-m"]):
            print(subprocess.run(["nvidia-smi", *words], capture_output=True, text=True).stdout)
    device = device_of(0)
    sides = {f"matrix product {precision}": matrix_product(device, precision) for precision in options.precisions}
    rates = rounds.in_turns({**sides, "copy": copy(device)}, options.rounds)
    rows = [
        {"name": name, **rounds.summary(values, "bytes_per_second" if name == "copy" else "flop_per_second")}
        for name, values in rates.items()
    ]
    for row in rows:
        print(f"{row['name']:<22} {row[row['unit']]:.4g} {row['unit']} ({row['least']:.4g} to {row['most']:.4g})")
    command.write(options, rows)


if __name__ == "__main__":
    command.run(main)
