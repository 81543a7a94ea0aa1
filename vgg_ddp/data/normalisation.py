"""What pixels are normalised with: the data set's own mean and deviation, or ImageNet's (`data.normalisation`)."""

from __future__ import annotations

from vgg_ddp.config.data import DataConfig
from vgg_ddp.data.record import DatasetRecord

# What torchvision's networks were trained with.
IMAGENET_MEAN, IMAGENET_STD = (
    [255 * mean for mean in (0.485, 0.456, 0.406)],
    [255 * std for std in (0.229, 0.224, 0.225)],
)


def normalisation(config: DataConfig, record: DatasetRecord) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel, in units of 0 to 255."""
    return (IMAGENET_MEAN, IMAGENET_STD) if config.normalisation == "imagenet" else (record.mean, record.std)
