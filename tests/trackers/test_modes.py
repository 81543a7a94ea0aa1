"""Which trackers a configuration selects, on machines with and without W&B and a login."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from vgg_ddp.config.tracking import TrackingConfig
from vgg_ddp.errors import UserError
from vgg_ddp.trackers import wanted
from vgg_ddp.trackers.modes import wandb_mode

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who is not logged in and has set nothing."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "user"))


def log_in(tmp_path: Path, host: str) -> None:
    (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")


def test_nobody_is_tracked_unasked() -> None:
    assert wanted(TrackingConfig()) == {}


def test_whoever_is_logged_in_is_tracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    log_in(tmp_path, "api.wandb.ai")
    assert wanted(TrackingConfig()) == {"wandb": "online"}
    assert wanted(TrackingConfig(wandb="disabled")) == {}
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wanted(TrackingConfig()) == {"wandb": "offline"}
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wanted(TrackingConfig()) == {}
    assert wanted(TrackingConfig(wandb="online")) == {"wandb": "online"}


def test_a_login_counts_for_its_own_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As W&B itself reads the same file."""
    wbnetrc = pytest.importorskip("wandb.sdk.lib.wbauth.wbnetrc", reason="W&B is not installed")
    log_in(tmp_path, "wandb.example.org:8080")
    for host, mode in (("http://wandb.example.org:8080", {"wandb": "online"}), ("https://api.wandb.ai", {})):
        monkeypatch.setenv("WANDB_BASE_URL", host)
        assert wanted(TrackingConfig()) == mode
        assert (wbnetrc.read_netrc_auth(host=host) is not None) == bool(mode)


@pytest.mark.parametrize("command", ["offline", "disabled"])
def test_what_w_and_b_s_command_has_set_for_a_folder_holds_there(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    log_in(tmp_path, "api.wandb.ai")
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "wandb", command], check=True, capture_output=True)
    assert wandb_mode("auto") == command
    assert wandb_mode("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert wandb_mode("auto") == "online"


def test_a_login_may_be_at_a_host_of_the_user_s_settings(tmp_path: Path) -> None:
    """As `wandb login --host` writes them."""
    pytest.importorskip("wandb", reason="W&B is not installed")
    log_in(tmp_path, "wandb.example.org:8080")
    assert wanted(TrackingConfig()) == {}
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "settings").write_text("[default]\nbase_url = http://wandb.example.org:8080\n")
    assert wanted(TrackingConfig()) == {"wandb": "online"}


def test_a_key_in_the_environment_is_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wanted(TrackingConfig()) == {"wandb": "online"}


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_what_is_not_installed_is_refused_where_asked_for(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wanted(TrackingConfig()) == {}
    with pytest.raises(UserError, match="pip install"):
        wanted(TrackingConfig(wandb=mode))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="pip install"):
        wanted(TrackingConfig(tensorboard=True))


def test_a_folder_that_wandb_left_is_not_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B writes into a folder of its own name; Python takes it for a package where the real one is absent."""
    (tmp_path / "wandb").mkdir()
    found = PathFinder.find_spec("wandb", [str(tmp_path)])
    assert found is not None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wanted(TrackingConfig()) == {}
    with pytest.raises(UserError, match="pip install"):
        wanted(TrackingConfig(tensorboard=True))


def test_online_without_a_login_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed")
    words = ["train", str(ROOT / "configs/quickstart.yaml"), "run.dir=run", "tracking.wandb=online"]
    done = subprocess.run([sys.executable, "-m", "vgg_ddp", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "wandb login" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "", "WANDB_API_KEY": "a" * 40}, "online"),
        ({"WANDB_DISABLED": "true", "WANDB_API_KEY": "a" * 40}, "disabled"),
        ({"WANDB_DISABLED": "false", "WANDB_MODE": "run"}, "online"),
    ],
)
def test_w_and_b_s_own_variables_are_heard(
    variables: dict[str, str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode("auto") == mode
