"""From a checkpoint into a training, or into a network that is evaluated: checked whole before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from vgg_ddp.model import VGG
from vgg_ddp.optim import optimizers
from vgg_ddp.run import checkpoint
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import say
from vgg_ddp.run.contents import Expected, checked_weights
from vgg_ddp.run.directory import RunDirectory, named
from vgg_ddp.training import continuing, stopping
from vgg_ddp.training.job import Job
from vgg_ddp.training.parts import empty_network


def resume(job: Job) -> State:
    """The state to begin from: that of the newest checkpoint that fits, loaded into the parts of `job`, or a fresh one.

    Raises:
        UserError: there are checkpoints, but of another training, or none that is whole.
    """
    contents = _newest_of_all(job)
    state = _loaded(job, contents)
    with job.world.together():
        if job.world.is_main and contents:
            _mark_best(job.run, state)
    answers = checkpoint.tensors(contents, checkpoint.ANSWERS)["answers"] if checkpoint.ANSWERS in contents else None
    job.answers.load(answers, state)
    if job.world.is_main and not contents:
        job.run.keep_metrics_until(-1, epoch_ended=False)  # of one that ended before its first checkpoint
    elif job.world.is_main and not job.finished(state):
        job.run.keep_metrics_until(state.step, epoch_ended=state.step_in_epoch == 0)
        say(f"continuing at step {state.step} of {job.total_steps}")
    return state


def _mark_best(run: RunDirectory, state: State) -> None:
    """Mark the newest checkpoint as the best if it is: a kill may have come between the two."""
    if state.step_in_epoch or state.best_accuracy < 0 or state.best_epoch != state.epoch:
        return
    newest = run.checkpoints / f"step-{state.step:08d}"
    if named(run.checkpoints, "best") != newest and newest.is_dir():
        with run.writing():
            checkpoint.mark_best(run.checkpoints, newest)


def begin(job: Job) -> State:
    """As `resume`, but without changing the run's folder: what it holds of later steps stays."""
    return _loaded(job, _newest_of_all(job))


def _loaded(job: Job, contents: checkpoint.Files) -> State:
    if not contents:
        return State(identity=continuing.identity(job.config, job.data.dataset), full_size_steps=0)
    state = checkpoint.state(contents)
    state.identity = continuing.identity(job.config, job.data.dataset)
    if state.full_size_steps is None:  # of an earlier version
        shrunk = len(job.config.data.train_sizes) * job.data.order.steps_per_epoch
        state.full_size_steps = max(0, state.step - shrunk)
    if not state.step_in_epoch:  # by today's rule, which may have more patience
        state.stopped = state.stopped and stopping.must_stop(job.config, state)
    job.engine.load_weights(checkpoint.tensors(contents, "model.safetensors"))
    # An engine without outer steps does not count them; local SGD that continues from it counts the training's steps.
    values = {**state.engine, "outer_steps": state.step}
    job.engine.load_state(checkpoint.tensors(contents, "optimizer.safetensors"), values)
    if job.config.ema:
        job.average.network.load_state_dict(checkpoint.tensors(contents, "ema.safetensors"))
    return state


def _newest_of_all(job: Job) -> checkpoint.Files:
    """The newest checkpoint that fits, on every rank; nothing where there is none. All ranks together."""
    identity = continuing.identity(job.config, job.data.dataset)
    files = job.world.from_main(lambda: _newest(job, expected(job), identity))
    return checkpoint.unpack(files) if files else {}


def _newest(job: Job, expected: Expected, identity: dict[str, object]) -> bytes:
    """The newest checkpoint of the run that fits, packed; empty if there is none. Prints which ones it passed over."""

    def check(where: Path, files: checkpoint.Files) -> None:
        found = checkpoint.state(files)
        free = () if found.step_in_epoch else continuing.OF_AN_EPOCH
        checkpoint.check_identity(found, {key: value for key, value in identity.items() if key not in free}, where)
        expected.check(where, files)

    found = checkpoint.read_newest(job.run.checkpoints, check)
    if found is None:
        return b""
    _, files, problems = found
    for problem in problems:
        say(f"passed over: {problem}")
    return checkpoint.pack(files)


def expected(job: Job) -> Expected:
    """What a checkpoint of this training holds."""
    config = job.config
    network = empty_network(config, len(job.data.dataset.classes), job.world.device)
    return Expected(
        weights=network.state_dict(),
        parameters=frozenset(name for name, parameter in network.named_parameters() if parameter.requires_grad),
        kinds=optimizers.STATE[config.optimizer.name],
        averaged=bool(config.ema),
        steps_per_epoch=job.data.order.steps_per_epoch,
        batch=job.data.order.batch,
    )


def load_weights(files: checkpoint.Files, where: Path, network: VGG) -> None:
    """Load the weights of a checkpoint that was read from `where`: the averaged ones where it has them.

    Raises:
        Damaged: they are of another network, or not finite.
    """
    name = "ema.safetensors" if "ema.safetensors" in files else "model.safetensors"
    network.load_state_dict(checked_weights(network.state_dict(), where, files, name))
