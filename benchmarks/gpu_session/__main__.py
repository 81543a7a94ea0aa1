"""One command for a machine with a GPU: environment, tests/gpu, step settings, profile, loaders, peers, accuracy.

    python -m benchmarks.gpu_session --out DIR [--stages NAME ...] [--limit SECONDS] [--small]

Each stage is a benchmark in a process of its own, with a time limit; its rows are in DIR/STAGE.json, what it printed in
DIR/STAGE.log. A stage that fails is reported, and the next one runs. Started again, the command runs the stages without
a result: remove DIR/STAGE.json to run one again. `--small` rehearses it all on a CPU in a minute or two; its figures
are meaningless.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from pathlib import Path

import torch

from benchmarks.gpu_session.running import run
from benchmarks.gpu_session.stages import stages
from benchmarks.gpu_session.table import table
from benchmarks.measurement import command
from vgg_ddp.errors import UserError


def main() -> None:
    """Run the stages that are left, and print the table of all.

    Raises:
        UserError: there is no GPU, or DIR holds the results of another size.
        SystemExit: not every stage has a result; code 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_session", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--stages", nargs="+", help="only these (default: all, in their order)")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for all together (default: none)")
    parser.add_argument("--data", default="digits", help="data source of the stage `accuracy` (default: digits)")
    parser.add_argument("--small", action="store_true", help="a rehearsal, which needs no GPU")
    options = parser.parse_args()
    known = stages(options.small, options.data, options.out)
    names = [stage.name for stage in known]
    for name in options.stages or []:
        if name not in names:
            raise UserError(f"there is no stage {name}; there are {', '.join(names)}")
    if not options.small and not torch.cuda.device_count():
        raise UserError("there is no NVIDIA GPU here; --small rehearses the session on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = [stage for stage in known if options.stages is None or stage.name in options.stages]
    complete = run(chosen, options.out, options.small, options.limit)
    text = table(options.out, names)
    (options.out / "table.md").write_text(text)
    print(f"\n{text}", end="")
    if not complete:
        sys.exit(1)


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(
        ["benchmarks.gpu_session.running", "benchmarks.measurement.step", "matplotlib.pyplot", "torchvision"]
    )
    command.run(main)
