"""A training's parts put together: what the loop runs on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import msgspec
from torch import Tensor, nn

from vgg_ddp import engines
from vgg_ddp.augment.appearance import Appearance
from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.data.settling import with_class_weights
from vgg_ddp.distributed.world import World
from vgg_ddp.loaders import Batch
from vgg_ddp.model.preprocess import Preprocess
from vgg_ddp.optim import averaging, schedules
from vgg_ddp.optim.averaging import Average
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.training import answers, cuda_graph, fitting, hardest_images, whitening
from vgg_ddp.training.initial_weights import InitialWeights, initial_weights
from vgg_ddp.training.parts import Data, build_appearance, build_data, build_network, build_preprocess
from vgg_ddp.training.saving import Saver


@dataclass(frozen=True)
class Job:
    """The parts of a training, built once.

    Attributes:
        build_seconds: of building after the data were open: initial weights, whitening, memory and compilation trials.
    """

    config: Config
    world: World
    run: RunDirectory
    data: Data
    preprocess: Preprocess
    appearance: Appearance
    chosen: hardest_images.EveryImage
    engine: engines.Engine
    saver: Saver
    average: Average
    answers: answers.TrainingAnswers
    initial: InitialWeights
    schedule: schedules.Schedule
    total_steps: int
    build_seconds: float

    def finished(self, state: State) -> bool:
        """Whether there is no step left to take."""
        return state.stopped or (state.step >= self.total_steps and not state.step_in_epoch)

    def batches(self, state: State) -> Iterator[Batch]:
        """This rank's batches of the epoch at hand, from the state's position to the epoch's or the training's end.

        There are none if the training was stopped within an epoch and is continued with an earlier end.
        """
        slices = self.data.order.slices(state.epoch, self.world.rank, self.world.size, state.step_in_epoch)
        return self.data.train_loader.stream(islice(slices, max(0, self.total_steps - state.step)))

    def inputs(self, batch: Batch, side: int | None) -> tuple[Tensor, Tensor]:
        """What the network takes, [n, 3, side, side], and its targets: labels, or float [n, classes] of mixed images.

        Args:
            side: the size to shrink the images to; None leaves them as they are.
        """
        pixels, targets = self.appearance(batch.images, batch.labels, batch.slice)
        return self.preprocess.normalise(pixels, side), targets

    def evaluated_network(self) -> nn.Module:
        """What is validated: the averaged weights if there are any, else the engine's. All ranks together."""
        return self.average.network if self.config.ema else self.engine.whole_network()

    def side(self, epoch: int) -> int | None:
        """The size to shrink this epoch's images to; None leaves them as they are."""
        data = self.config.data
        return next((size for size in data.train_sizes[epoch : epoch + 1] if size < data.image_size), None)


def build_job(config: Config, dataset: Dataset, run: RunDirectory, world: World) -> Job:
    """Every part of the training that `config` describes.

    Raises:
        UserError: what is asked for does not fit the data or the ranks.
    """
    cuda_graph.check(config, world)
    with world.together():  # what one rank alone may meet, before what all do together
        data = build_data(config, dataset, world)
    opened = time.perf_counter()
    initial = whitening.added(initial_weights(config, len(dataset.classes), run, world), config, dataset, world)
    network = partial(build_network, config, len(dataset.classes), world.device, initial.set)
    config, tried = fitting.fitted(config, network, run, world)
    weighted = msgspec.structs.replace(config, loss=with_class_weights(config.loss, dataset))
    engine = engines.build(weighted, network(), world)
    config = cuda_graph.settled(config, engine)
    if config.compile == "graph":
        data.train_loader.leave_to_step()
    engine.measured |= {"accumulation": tried} if tried else {}
    steps_per_epoch = data.order.steps_per_epoch
    total_steps = max(1, config.min_steps, round(config.epochs * steps_per_epoch))
    return Job(
        config=config,
        world=world,
        run=run,
        data=data,
        preprocess=build_preprocess(config, dataset, world.device),
        appearance=build_appearance(config, dataset, world.device),
        chosen=hardest_images.build(weighted, engine.whole_network, world),
        engine=engine,
        saver=Saver(run.checkpoints, config.checkpoint, world),
        average=averaging.build(engine.whole_network, config.ema, config.lookahead, total_steps),
        answers=answers.build(config.log, data.order, len(dataset.split("train")), run, world),
        initial=initial,
        schedule=schedules.build(config.schedule, steps_per_epoch, total_steps),
        total_steps=total_steps,
        build_seconds=time.perf_counter() - opened,
    )
