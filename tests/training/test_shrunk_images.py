"""A training that ends, or is stopped, while its images are shrunk: what is evaluated has seen images of the evaluated size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

import vgg_ddp
from tests.support.rank_processes import Train, program
from vgg_ddp.config import load
from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.settling import check_train_sizes
from vgg_ddp.data.validation import held_out
from vgg_ddp.errors import UserError
from vgg_ddp.run.metrics_log import read_metrics

WORDS = ("data.image_size=32", "data.train_sizes=[16,16]", "data.validation=0.25", "min_steps=14", "batch=16")


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_what_answers_is_the_network_that_was_validated(ema: float, train: Train, tmp_path: Path) -> None:
    """By statistics measured anew; those that the checkpoint has to go on with are of 16 pixels."""
    run = train(f"shrunk {ema}", *WORDS, f"ema={ema}")
    network, config = vgg_ddp.load_network(run), load(run / "config.yaml")
    dataset = Dataset(config.data.source)
    logged = [row for row in read_metrics(run / "metrics.jsonl") if row["split"] == "validation"][-1]
    split = dataset.split("train")
    samples = held_out(dataset, config.data, config.seed)[1].samples
    pixels = torch.from_numpy(np.stack([split.decode(int(k)) for k in samples]))
    with torch.no_grad():
        loss = cross_entropy(network(pixels), torch.from_numpy(split.labels[samples]))
        assert loss.item() == pytest.approx(logged["loss"], rel=1e-4)
        with np.load(run / "evaluation/predictions.npz") as answers:
            test = dataset.split("test")
            pixels = torch.from_numpy(np.stack([test.decode(int(k)) for k in answers["sample_index"]]))
            found = network(pixels).softmax(1).numpy()
            np.testing.assert_allclose(found, answers["probabilities"], atol=1e-4)
            pictures = tmp_path / "pictures"
            pictures.mkdir()
            Image.fromarray(test.decode(0)).save(pictures / "0.png")
    done = program(
        "vgg_ddp", "evaluate", str(run), "--images", str(pictures), "--out", str(tmp_path / "own"), folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads((tmp_path / "own/predictions.json").read_text())["images"]
    of_classes = dict(zip(dataset.classes, found[0]))
    assert answer["probabilities"] == pytest.approx(of_classes, abs=1e-3)


def test_sizes_that_would_enlarge_images_are_refused() -> None:
    check_train_sizes(DataConfig(image_size=24, train_sizes=[16, 24]))
    with pytest.raises(UserError, match=r"data\.train_sizes \(24\) would enlarge images of data\.image_size=16"):
        check_train_sizes(DataConfig(image_size=16, train_sizes=[16, 24]))
