"""Bind a rank to the cores and the memory of one NUMA node: `python -m launch.binding MODULE [argument ...]`.

Local ranks take the nodes in turn. A GPU's rank is bound to the node that the GPU is attached to.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vgg_ddp.distributed.launcher import numa_nodes


def node_of(local_rank: int, nodes: int) -> int:
    """The NUMA node for a local rank: its GPU's, or the next in turn where there is no GPU."""
    gpus = sorted(
        Path("/proc/driver/nvidia/gpus").glob("*")
    )  # by bus address: the order of CUDA_DEVICE_ORDER=PCI_BUS_ID
    if local_rank < len(gpus):
        node = int(Path(f"/sys/bus/pci/devices/{gpus[local_rank].name.lower()}/numa_node").read_text())
        return max(node, 0)
    return local_rank % nodes


def main(arguments: list[str]) -> None:
    """Replace this process by `python -m MODULE ...` under numactl; without it where the kernel refuses the binding."""
    local_rank = int(os.environ["LOCAL_RANK"])
    node = node_of(local_rank, numa_nodes())
    numactl = ["numactl", f"--cpunodebind={node}", f"--membind={node}"]
    program = [sys.executable, "-m", *arguments]
    refused = subprocess.run([*numactl, "true"], capture_output=True, text=True)
    if refused.returncode:
        print(f"launch: rank not bound to NUMA node {node}: {refused.stderr.strip()}", file=sys.stderr, flush=True)
        os.execv(program[0], program)
    os.execvp(numactl[0], [*numactl, *program])


if __name__ == "__main__":
    main(sys.argv[1:])
