"""What a user's DeepSpeed file may say, and what is derived from our own keys. DeepSpeed itself is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from vgg_ddp.config import Config
from vgg_ddp.config.deepspeed import DeepSpeedConfig
from vgg_ddp.config.deepspeed_file import DERIVED, REMOVED, UNSUPPORTED, derive
from vgg_ddp.config.optimizer import OptimizerConfig
from vgg_ddp.errors import EXIT_USER_ERROR, UserError

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
ROOT = Path(__file__).resolve().parents[2]


def derived(path: Path | None = None, content: str = "{}", stage: int = 2) -> dict[str, object]:
    if path is not None:
        path.write_text(content)
    where = None if path is None else str(path)
    settings = DeepSpeedConfig(stage=stage, config=where)  # type: ignore[arg-type]
    optimizer = OptimizerConfig(clip_norm=2.0)
    return derive(
        Config(batch=64, accumulation=4, precision="fp16", optimizer=optimizer, engine="deepspeed", deepspeed=settings),
        2,
    )


def test_our_keys_become_deepspeed_s() -> None:
    found = derived()
    assert found["train_batch_size"] == 64
    assert found["train_micro_batch_size_per_gpu"] == 8
    assert found["gradient_accumulation_steps"] == 4
    assert found["gradient_clipping"] == 2.0
    assert found["torch_autocast"] == {"enabled": True, "dtype": "float16"}
    assert found["zero_optimization"]["stage"] == 2  # type: ignore[index]


def test_the_file_adds_keys_and_wins_over_what_is_only_a_default(tmp_path: Path) -> None:
    content = {"wall_clock_breakdown": True, "zero_optimization": {"reduce_bucket_size": 1000}}
    found = derived(tmp_path / "more.json", json.dumps(content))
    assert found["wall_clock_breakdown"] is True
    assert found["zero_optimization"]["reduce_bucket_size"] == 1000  # type: ignore[index]
    assert found["zero_optimization"]["stage"] == 2  # type: ignore[index]


def in_file(key: str) -> str:
    *groups, name = key.split(".")
    content: dict[str, object] = {name: {}}
    for group in reversed(groups):
        content = {group: content}
    return json.dumps(content)


@pytest.mark.parametrize("key", [*DERIVED, *REMOVED, *UNSUPPORTED])
def test_a_key_that_is_not_the_file_s_is_refused_by_name(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        derived(tmp_path / "more.json", in_file(key))
    message = str(caught.value)
    assert f"'{key}'" in message and str(tmp_path / "more.json") in message and "\n" not in message
    assert DERIVED.get(key, "leave it out") in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [("{", "not valid JSON"), ("[1]", "JSON objects"), ('{"zero_optimization": 3}', "JSON objects")],
)
def test_a_file_that_is_no_configuration_is_refused(content: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        derived(tmp_path / "more.json", content)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "vgg11_short.yaml")
    words = ["train", config, "engine=deepspeed", "deepspeed.config=nowhere.json"]
    done = subprocess.run([sys.executable, "-m", "vgg_ddp", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == EXIT_USER_ERROR
    assert done.stderr.splitlines() == [
        "vgg-ddp: deepspeed.config: nowhere.json does not exist; give the path of a JSON file, or null"
    ]
