"""What the benchmark of loaders refuses."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import loaders
from vgg_ddp.errors import UserError


def test_a_data_set_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    """Otherwise each loader would wait forever for a first batch."""
    options = Namespace(data="digits", photos=0, batch=2000, threads=1, only=None)
    with pytest.raises(UserError, match="1438 training images are fewer than one batch of 2000; set --batch"):
        loaders.prepared_sides(options, tmp_path)
