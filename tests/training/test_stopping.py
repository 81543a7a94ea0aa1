"""When a training ends before its last epoch."""

from __future__ import annotations

import msgspec
import pytest

from vgg_ddp.config import Config
from vgg_ddp.run.checkpoint import State
from vgg_ddp.training.stopping import must_stop


@pytest.mark.parametrize(("patience", "stops"), [(4, True), (5, True), (6, False), (None, False)])
def test_a_rule_with_more_patience_goes_on(patience: int | None, stops: bool) -> None:
    state = State(identity={}, epoch=6, best_epoch=1, accuracies=[0.5, 0.4, 0.4, 0.4, 0.4, 0.4], stopped=True)
    config = msgspec.convert({"stop": {"patience": patience}}, Config)
    assert must_stop(config, state) == stops
