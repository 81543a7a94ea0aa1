"""`vgg-ddp doctor` looks for what an installation brings."""

from __future__ import annotations

import importlib.metadata
import re

from vgg_ddp import doctor


def test_required_packages_are_those_of_the_installation() -> None:
    lines = importlib.metadata.requires("vgg_ddp") or []
    names = {re.split(r"[^\w-]", line)[0] for line in lines if "extra ==" not in line}
    assert set(doctor.REQUIRED) == names
