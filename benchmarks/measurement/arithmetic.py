"""torch's process-wide settings of arithmetic: the same for all that is compared in one precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from vgg_ddp.config import Config
from vgg_ddp.optim.precision import set_arithmetic


@contextlib.contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Inside, the settings are those of a training in `precision`; afterwards they are as they were.

    They hold for a whole process, and decide on a GPU between kernels of very different speed. So sides that alternate
    in one process each set them; they are checked afterwards, since third-party loops may have changed them.

    Raises:
        RuntimeError: what ran inside has changed one, so that it cannot be compared.
    """
    before = _Settings.found()
    set_arithmetic(Config(precision=precision), torch.device("cpu"))  # type: ignore[arg-type]
    wanted = _Settings.found()
    try:
        yield
        found = _Settings.found()
        if found != wanted:
            raise RuntimeError(f"measured with {found}, which is not what {precision} has: {wanted}")
    finally:
        before.set()


class _Settings(NamedTuple):
    float32_products: str
    tf32_convolutions: bool
    cudnn_benchmark: bool
    deterministic: bool

    @classmethod
    def found(cls) -> _Settings:
        cudnn = torch.backends.cudnn
        deterministic = torch.are_deterministic_algorithms_enabled()
        return cls(torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, deterministic)

    def set(self) -> None:
        torch.set_float32_matmul_precision(self.float32_products)
        torch.backends.cudnn.allow_tf32 = self.tf32_convolutions
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        if self.deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports the compiler
            torch.use_deterministic_algorithms(self.deterministic)
