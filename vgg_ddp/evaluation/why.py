"""Why a network gives the answers that it gives: nearest training images, what it relies on, slices, hidden parts, a map.

Rank 0 does this alone, from what all ranks gathered, within `vgg_ddp.analysis.budget`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vgg_ddp.analysis import neighbours, projection, reliance, slices
from vgg_ddp.analysis.budget import BUDGETS, Budget, spread
from vgg_ddp.analysis.neighbours import Features
from vgg_ddp.analysis.predictions import Predictions
from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.distributed.world import World
from vgg_ddp.evaluation import attributes, occlusion, own_images
from vgg_ddp.model import VGG
from vgg_ddp.model.preprocess import Preprocess
from vgg_ddp.optim.precision import autocast

MOST_KINDS = 20  # classes or groups of which the accuracy under each change is told
NOTHING: dict[str, Any] = dict.fromkeys(
    ("neighbours", "training_labels", "relied_on", "by_attribute", "by_agreement", "occlusion", "map")
)


@dataclass(frozen=True)
class Answered:
    """A network's answers to some images, on rank 0, and the features before its last layer.

    Attributes:
        features: float16 [n, width], each of length one; None where it was shown several views of each image.
        kept: the samples that they are of, int64 [n]; of a very large split some, evenly spread.
    """

    predictions: Predictions
    features: Features | None
    kept: NDArray[np.int64]

    @property
    def with_features(self) -> Predictions:
        """The answers to the images of `features`."""
        found, place = self.predictions, np.searchsorted(self.predictions.sample_index, self.kept)
        return Predictions(found.label[place], found.logits[place], found.sample_index[place])


def left_out(reason: str, budget: str) -> dict[str, Any]:
    """The entry in summary.json where nothing was searched for, and why, with the name of the requested budget."""
    return {"budget": budget, "left_out": [reason], **NOTHING}


class Search:
    """Looks for the causes, a part after another.

    Args:
        network: in evaluation mode.
        described: what `vgg_ddp.analysis.summary.describe` says of the test images.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        network: VGG,
        preprocess: Preprocess,
        world: World,
        tested: Answered,
        described: dict[str, Any],
    ) -> None:
        self._config, self._dataset, self._network, self._preprocess = config, dataset, network, preprocess
        self._world, self._tested, self._described = world, tested, described
        self._budget: Budget = BUDGETS[config.analysis.budget]
        self._said: list[str] = []
        self.arrays: dict[str, NDArray[Any]] = {}

    def describe(self, trained: Answered | None) -> dict[str, Any]:
        """All of it for summary.json; pictures and places are then in `arrays`.

        Args:
            trained: answers to images that the network was trained on; None where they are not known.
        """
        slices_of_test = self._slices()
        budget = self._budget.name
        if budget == "none":
            return {**left_out("analysis.budget=none leaves out what takes time.", budget), **slices_of_test}
        if self._tested.features is None:
            reason = "Looked for only where each image is shown once, at its centre."
            return {**left_out(reason, budget), **slices_of_test}
        self._network.eval()
        found = {
            "budget": budget,
            **NOTHING,
            **slices_of_test,
            **self._neighbours(self._tested.features, trained),
            "relied_on": self._relied_on(),
            "occlusion": self._hidden_parts(),
            "map": self._map(self._tested.features),
        }
        return {**found, "left_out": self._said}

    def _slices(self) -> dict[str, Any]:
        config, predictions = self._config.analysis, self._tested.predictions
        found: dict[str, Any] = {}
        if config.attributes is not None:
            columns, said = attributes.by_image(Path(config.attributes), self._dataset.split("test"))
            chosen = {name: [values[k] for k in predictions.sample_index] for name, values in columns.items()}
            right = predictions.prediction == predictions.label
            of = {"file": Path(config.attributes).name, "notes": said, "columns": len(columns)}
            found["by_attribute"] = {**of, "attributes": slices.by_attribute(right, chosen)}
        if config.human_labels is not None:
            images = len(self._dataset.split("test"))
            shares = attributes.human_labels(Path(config.human_labels), self._dataset.classes, images)
            found["by_agreement"] = {
                "file": Path(config.human_labels).name,
                **slices.by_agreement(predictions.label, predictions.prediction, shares[predictions.sample_index]),
            }
        return found

    def _neighbours(self, test: Features, trained: Answered | None) -> dict[str, Any]:
        """Nearest training images of what the page shows, and training images whose label is doubtful."""
        if trained is None or trained.features is None:
            self._said.append("Nearest training images: it is not known which images the network was trained on.")
            return {}
        of_test, of_train = self._tested.with_features, trained.with_features
        shown = np.isin(of_test.sample_index, self._shown())
        near = of_train.sample_index[neighbours.nearest(test[shown], trained.features, neighbours.SHOWN)]
        total = len(self._dataset.split("train"))
        searched = len(of_train.label)
        if searched < total:
            self._said.append(f"Nearest images were looked for among {searched:,} of {total:,} training images.")
        self._world.activity.go_on()
        most = int(self._budget.products / max(trained.features.size, 1))
        mistakes, labels = neighbours.of_each_mistake(of_test, test, of_train.label, trained.features, most)
        self.arrays["mistaken_samples"], self.arrays["labels_near_mistakes"] = mistakes, labels
        self._world.activity.go_on()
        found = {
            "searched": searched,
            "of": total,
            "nearest": dict(zip(map(str, of_test.sample_index[shown].tolist()), near.tolist())),
            "surest_mistakes": neighbours.of_mistakes(of_test, test, of_train.label, trained.features),
        }
        self._world.activity.go_on()
        return {"neighbours": found, "training_labels": self._training_labels(of_train, trained.features)}

    def _shown(self) -> list[int]:
        """The test images under which the page shows their nearest training images."""
        return [*self._described["surest_mistakes"], *self._described["doubtful_labels"]["sample_index"]]

    def _training_labels(self, answers: Predictions, all_features: Features) -> dict[str, Any]:
        chosen = spread(len(answers.label), self._budget.searched(len(answers.label), all_features.shape[1]))
        answers = Predictions(answers.label[chosen], answers.logits[chosen], answers.sample_index[chosen])
        near = neighbours.nearest(all_features[chosen], all_features[chosen], neighbours.VOTING, themselves=True)
        self._world.activity.go_on()
        doubtful = neighbours.doubtful_training_labels(answers, near)
        first = doubtful[: neighbours.MOST_IMAGES]
        return {
            "images": len(chosen),
            "of": len(self._dataset.split("train")),
            "doubtful": len(doubtful),
            "sample_index": answers.sample_index[first].tolist(),
            "label": answers.label[first].tolist(),
            "prediction": answers.prediction[first].tolist(),
            "nearest": answers.sample_index[near[first, : neighbours.SHOWN]].tolist(),
        }

    def _views(self, samples: NDArray[np.int64]) -> Tensor:
        """What the network sees of test images, uint8 [n, 3, side, side], on the host."""
        split = self._dataset.split("test")
        seen = []
        for sample in samples.tolist():
            seen.append(own_images.seen(split.decode(sample), self._config.data))
            self._world.activity.go_on()
        return torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def _scores(self, inputs: Tensor) -> Tensor:
        """Logits of normalised images [n, 3, side, side], in batches of `evaluate.batch`."""
        parts = []
        for some in inputs.split(self._config.evaluate.batch):
            with autocast(self._config.precision, self._world.device):
                parts.append(self._network(some).float())
            self._world.activity.go_on()
        return torch.cat(parts)

    def _normalised(self, images: Tensor) -> Tensor:
        return self._preprocess(images.permute(0, 2, 3, 1).to(self._world.device))

    def _relied_on(self) -> dict[str, Any] | None:
        """Accuracy under each change of some test images, evenly spread."""
        from vgg_ddp.evaluation.changes import CHANGES  # torchvision is slow to import

        predictions, side = self._tested.predictions, self._config.data.image_size
        count = self._budget.changed(len(predictions.label), side, len(CHANGES))
        chosen = spread(len(predictions.label), count)
        label = predictions.label[chosen]
        images = self._views(predictions.sample_index[chosen])
        fill = images.float().mean(dim=(0, 2, 3)).round()

        def right(changed: Tensor) -> NDArray[np.bool_]:
            return self._scores(self._normalised(changed)).argmax(dim=1).cpu().numpy() == label

        unchanged = right(images)
        example = int(unchanged.argmax())
        found, pictures = {}, [images[example]]
        for name, change in CHANGES.items():
            changed = change(images, fill)
            found[name] = right(changed)
            pictures.append(changed[example])
        self.arrays["changed_pictures"] = torch.stack(pictures).permute(0, 2, 3, 1).numpy()
        if count < len(predictions.label):
            self._said.append(
                f"Changes of the picture were tried on {count:,} of {len(predictions.label):,} test images."
            )
        return {
            "example": int(predictions.sample_index[chosen[example]]),
            **reliance.describe(found, unchanged, self._kinds(label)),
        }

    def _kinds(self, label: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """By group, or by class if there are no groups, which images belong to it; empty if there are too many."""
        classes = self._dataset.classes
        groups = {name: group["classes"] for name, group in self._described["groups"].items()}
        members = groups or {name: [name] for name in classes}
        if len(members) > MOST_KINDS:
            return {}
        return {name: np.isin(label, [classes.index(one) for one in of]) for name, of in members.items()}

    def _hidden_parts(self) -> dict[str, Any] | None:
        """Maps of the surest mistakes: how much the answer's logit falls where a part is hidden, and Grad-CAM's."""
        samples = np.array(self._described["surest_mistakes"][: self._budget.occluded], dtype=np.int64)
        if not len(samples):
            return None
        predictions, side = self._tested.predictions, self._config.data.image_size
        window = max(2, side // occlusion.WINDOW)
        views = self._views(samples)
        answers = predictions.prediction[np.searchsorted(predictions.sample_index, samples)]
        maps, sights = [], []
        for image, answer in zip(self._normalised(views), answers.tolist()):
            maps.append(occlusion.occlusion(self._scores, image, answer, window, max(1, window // 2)))
            with autocast(self._config.precision, self._world.device):
                sights.append(occlusion.grad_cam(self._network, image, answer))
            self._world.activity.go_on()
        self.arrays["occluded_views"] = views.permute(0, 2, 3, 1).numpy()
        self.arrays["occlusion"] = torch.stack(maps).numpy()
        seen = [sight for sight in sights if sight is not None]
        if seen:
            self.arrays["grad_cam"] = torch.stack(seen).numpy()
        return {
            "sample_index": samples.tolist(),
            "window": window,
            "stride": max(1, window // 2),
            "grad_cam": bool(seen),
        }

    def _map(self, test: Features) -> dict[str, Any] | None:
        chosen = spread(len(test), self._budget.mapped)
        places = projection.layout(test[chosen])
        self._world.activity.go_on()
        if not len(places):
            return None
        answers = self._tested.with_features
        self.arrays["map_samples"], self.arrays["map_places"] = answers.sample_index[chosen], places
        if len(chosen) < len(self._tested.predictions.label):
            self._said.append(
                f"The map has {len(chosen):,} of {len(self._tested.predictions.label):,} test images, evenly spread."
            )
        return projection.describe(test[chosen], places, answers.label[chosen])
