"""The training loss with weights of classes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from vgg_ddp.config import Config
from vgg_ddp.config.optimizer import LossConfig
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.settling import with_class_weights
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import UserError
from vgg_ddp.optim import losses
from vgg_ddp.training.parts import build_data


def test_balanced_weights_are_scikit_learn_s(few_digits: Path) -> None:
    dataset = Dataset(few_digits)
    counts = [190, 10, 40, 1, 2, 3, 4, 5, 6, 7]
    train = msgspec.structs.replace(dataset.record.splits["train"], count=sum(counts), class_counts=counts)
    splits = {**dataset.record.splits, "train": train}
    dataset.record = msgspec.structs.replace(dataset.record, splits=splits)
    weights = with_class_weights(LossConfig(class_weights="balanced"), dataset).class_weights
    labels = np.repeat(np.arange(10), counts)
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(10), y=labels).tolist())
    assert np.mean(np.array(weights)[labels]) == pytest.approx(1)
    with pytest.raises(UserError, match="2 weights for the 10 classes"):
        config = Config(batch=16, loss=LossConfig(class_weights=[1.0, 2.0]))
        build_data(config, dataset, World(0, 1, 0, 1, torch.device("cpu")))


def test_the_loss_is_the_mean_over_images_of_any_micro_batches() -> None:
    weights, generator = [0.5, 2.0, 1.0], torch.Generator().manual_seed(0)
    criterion = losses.build(LossConfig(class_weights=weights, label_smoothing=0.1), torch.device("cpu"))
    logits = torch.randn(8, 3, generator=generator)
    labels = torch.randint(3, (8,), generator=generator)
    each = functional.cross_entropy(logits, labels, torch.tensor(weights), reduction="none", label_smoothing=0.1)
    assert criterion(logits, labels) == pytest.approx(each.mean().item())
    halves = [criterion(logits[rows], labels[rows]) for rows in (slice(4), slice(4, 8))]
    assert (halves[0] + halves[1]) / 2 == pytest.approx(criterion(logits, labels).item())
    plain = losses.build(LossConfig(class_weights=[1.0] * 3), torch.device("cpu"))
    assert plain(logits, labels) == pytest.approx(functional.cross_entropy(logits, labels).item())


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
def test_smoothed_targets_of_mixed_images_are_the_mean_of_their_labels(weights: list[float] | None) -> None:
    criterion = losses.build(LossConfig(class_weights=weights, label_smoothing=0.2), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    logits, share = torch.randn(8, 3, generator=generator), torch.rand(8, 1, generator=generator)
    first, second = (torch.randint(3, (8,), generator=generator) for _ in range(2))
    mixed = share * functional.one_hot(first, 3) + (1 - share) * functional.one_hot(second, 3)
    each = torch.stack([share * criterion(row, one) for share, row, one in zip(share, logits[:, None], first[:, None])])
    each += torch.stack(
        [(1 - share) * criterion(row, one) for share, row, one in zip(share, logits[:, None], second[:, None])]
    )
    torch.testing.assert_close(criterion(logits, mixed), each.mean())
