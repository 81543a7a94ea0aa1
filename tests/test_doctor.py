"""`vgg-ddp doctor` looks for what an installation brings."""

from __future__ import annotations

import importlib.metadata
import re
import shutil

import pytest

from vgg_ddp import doctor


def test_required_packages_are_those_of_the_installation() -> None:
    lines = importlib.metadata.requires("vgg_ddp") or []
    names = {re.split(r"[^\w-]", line)[0] for line in lines if "extra ==" not in line}
    assert set(doctor.REQUIRED) == names


def test_the_extra_that_is_named_for_a_package_brings_it() -> None:
    lines = importlib.metadata.requires("vgg_ddp") or []
    for name, use in doctor.OPTIONAL.items():
        (extra,) = re.findall(r"pip install 'vgg_ddp\[(\w+)\]'$", use)
        assert any(re.match(rf"{name}\b.*extra == .{extra}\W", line) for line in lines), name


@pytest.mark.parametrize("there", [set(), {"g++"}, {"gcc"}, {"clang"}, {"g++", "gcc"}])
def test_each_compiler_that_is_missing_has_its_own_note(
    there: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shutil, "which", lambda program: program if program in there else None)
    doctor.examine()
    notes = re.findall(r"^note  no (C\S*) compiler: ", capsys.readouterr().out, re.MULTILINE)
    assert notes == ["C++"] * ("g++" not in there) + ["C"] * there.isdisjoint({"gcc", "clang"})
