"""What all tests share: their settings."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
os.environ["WANDB_MODE"] = "disabled"  # the trainings of the tests are nobody's runs, whoever is logged in here
# Derandomised, so that a failure is seen by everyone; without deadlines, since machines differ.
hypothesis.settings.register_profile(
    "tests", derandomize=True, deadline=None, max_examples=60, database=None, print_blob=False
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="module")
def small_heap() -> Iterator[None]:
    """For tests that collect garbage: what there is before them is not looked at again, which makes it quick."""
    gc.freeze()
    yield
    gc.unfreeze()
