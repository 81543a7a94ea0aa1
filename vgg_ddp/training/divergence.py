"""Where a training diverged: repeats its steps since the newest checkpoint, and looks at every layer."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import torch
from torch import Tensor, nn

from vgg_ddp.engines.compilation import GRAPH
from vgg_ddp.optim import optimizers
from vgg_ddp.randomness import seed_dropout
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import say
from vgg_ddp.run.contents import is_finite
from vgg_ddp.training import loading
from vgg_ddp.training.job import Job, build_job

MOST_SECONDS = 60.0  # of steps once more: a training that saves seldom may have taken hours of them
TakeStep = Callable[..., None]  # `vgg_ddp.train.take_step`


class Layers:
    """Looks at what each layer of a network gives, and at its weights; takes the place of a training's recorder.

    Attributes:
        names: of what is looked at, in the order of a forward pass: the outputs of the layers, then the weights.
    """

    def __init__(self, network: nn.Module) -> None:
        self._weights = dict(network.named_parameters())
        layers = {name: layer for name, layer in network.named_modules() if not list(layer.children())}
        self.names = [f"the output of {name} ({type(layer).__name__})" for name, layer in layers.items()]
        self.names += [f"{name}, after its update" for name in self._weights]
        self._found = torch.zeros(len(self.names), dtype=torch.float64)
        for number, layer in enumerate(layers.values()):
            layer.register_forward_hook(lambda layer, given, output, number=number: self._look(number, output))

    def _look(self, number: int, tensor: Tensor) -> None:
        if not is_finite(tensor):
            self._found[number] = 1

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Nothing: the loss follows from what is looked at."""

    def found(self) -> Tensor:
        """1 for each of `names` that was not finite, float64 [names]; weights are checked only if no output was."""
        if not self._found.any():
            for number, weight in enumerate(self._weights.values(), start=len(self.names) - len(self._weights)):
                self._look(number, weight)
        return self._found.clone()


def where(job: Job, take_step: TakeStep, state: State) -> str:
    """In which step, of which images and in which layer a training that is at `state` was first not finite; "" if unknown.

    All ranks together.
    """
    return job.answers.first_not_finite(state) + first_layer(job, take_step, state.step)


def first_layer(job: Job, take_step: TakeStep, last_step: int) -> str:
    """The first layer that is not finite when the steps up to `last_step` are repeated; "" if none is found within a minute.

    They are repeated from the newest checkpoint, or from the initial weights, with newly built parts: those of the
    diverged training are of no use. The step is not compiled, since a compiled network's layers cannot be hooked.
    A training with compile=graph is not searched: its graph holds memory that a second training would need.
    """
    config, world = msgspec.structs.replace(job.config, compile=False), job.world
    if job.config.compile == GRAPH or config.engine != "ddp" or config.communication.split_head != "none":
        return ""
    world.activity.go_on(waits=True)  # for the disk, and then for parts that take as long to build as they do
    job.saver.settle()
    again = build_job(config, job.data.dataset, job.run, world)
    state = loading.begin(again)
    if world.is_main:
        say(f"looking for the first layer that is not finite: the steps from {state.step + 1} on once more")
    layers, start = Layers(again.engine.whole_network()), time.monotonic()
    while state.step < last_step:
        for batch in again.batches(state):
            world.activity.go_on()
            rate = config.optimizer.learning_rate * again.schedule(state.step, state.accuracies)
            optimizers.set_learning_rate(again.engine.optimizer, rate)
            seed_dropout(config.seed, state.step, world.rank)
            take_step(again, layers, batch, again.side(state.epoch))
            again.average.update(state.step)
            state.step += 1
            late = torch.tensor([float(time.monotonic() - start > MOST_SECONDS)], dtype=torch.float64)
            *found, given_up = world.sum(torch.cat([layers.found(), late])).tolist()
            if any(found):
                name = next(name for name, count in zip(layers.names, found) if count)
                return f" (first layer that is not finite: {name}, in step {state.step})"
            if given_up or state.step >= last_step:
                return ""
        again.engine.synchronise()
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
    return ""
