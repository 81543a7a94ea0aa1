"""Whether W&B and TensorBoard can be used here, told without importing them."""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from vgg_ddp.errors import UserError


def wandb_mode(asked: str) -> str:
    """What `tracking.wandb` means here: "online", "offline" or "disabled".

    "auto" is what the variables WANDB_DISABLED and WANDB_MODE say, or the settings that `wandb offline` and the like write;
    else online for a user who is logged in, else disabled.

    Raises:
        UserError: W&B was asked for by name and is not installed, or online without a login.
    """
    if asked == "disabled":
        return "disabled"
    spec = importlib.util.find_spec("wandb")
    installed = spec is not None and spec.origin is not None  # a folder of that name, which W&B creates, is no package
    if asked == "auto":
        if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
            return "disabled"
        mode = os.environ.get("WANDB_MODE") or _setting("mode") or ("online" if logged_in() else "disabled")
        mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # their names in W&B's first versions
        return mode if installed and mode in ("online", "offline") else "disabled"
    if not installed:
        raise UserError(
            f"tracking.wandb={asked} needs W&B; pip install 'vgg_ddp[wandb]', or set tracking.wandb=disabled"
        )
    if asked == "online" and not logged_in():
        raise UserError("tracking.wandb=online needs a login; run 'wandb login', or set tracking.wandb=offline")
    return asked


def logged_in() -> bool:
    """Whether W&B's own rules find an API key: in its variable, in a file of tokens, or in .netrc for its host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _setting("base_url") or "https://api.wandb.ai").netloc
    with contextlib.suppress(OSError, netrc.NetrcParseError, ValueError, RuntimeError):  # no text; there is no home
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return netrc.netrc(path).hosts.get(host) is not None
    return False


def _setting(key: str) -> str:
    """What W&B's own settings files say: the user's, over which goes that of the current folder; "" where they say nothing."""
    read = configparser.ConfigParser(interpolation=None)
    user = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    with contextlib.suppress(OSError, configparser.Error, ValueError, RuntimeError):  # no such file; there is no home
        read.read(
            [Path(user).expanduser() / "settings", Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings"]
        )
    return read.get("default", key, fallback="")


def check_tensorboard() -> None:
    """Raises a `UserError` if TensorBoard was asked for and is not installed."""
    spec = importlib.util.find_spec("tensorboard")
    if spec is None or spec.origin is None:  # the latter of a folder of that name
        raise UserError(
            "tracking.tensorboard=true needs TensorBoard; pip install 'vgg_ddp[tensorboard]', or leave it out"
        )
