"""`vgg-ddp doctor` looks for what an installation should include."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

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


def test_without_torch_it_names_it_and_looks_no_further(tmp_path: Path) -> None:
    """With a torch that cannot be imported and has no package record, as where it is not installed."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    hide = (
        "import importlib.metadata as m; version = m.version\n"
        "def hidden(name):\n if name == 'torch': raise m.PackageNotFoundError(name)\n return version(name)\n"
        "m.version = hidden\nfrom vgg_ddp import doctor; raise SystemExit(doctor.examine())"
    )
    done = subprocess.run([sys.executable, "-c", hide], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")
    assert "lacks torch: pip install torch" in done.stdout


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
