"""The training: one run from configuration to report, and the loop in it.

Start it with `vgg-ddp train`, or `torchrun ... -m vgg_ddp.train`.
"""

from __future__ import annotations

import contextlib
import sys
from functools import partial

import torch

from vgg_ddp import evaluate, preflight
from vgg_ddp.analysis.predictions import accuracy, class_accuracies, loss
from vgg_ddp.config import dump, load, with_absolute_paths
from vgg_ddp.data import of_run
from vgg_ddp.data.dataset import QUICKLY_READ, Dataset
from vgg_ddp.distributed import memory, rank_process
from vgg_ddp.distributed.world import World
from vgg_ddp.errors import StoppedOnRequest, leave
from vgg_ddp.evaluation.inference import predict
from vgg_ddp.loaders import Batch
from vgg_ddp.optim import optimizers, plateau, precision
from vgg_ddp.randomness import seed_dropout
from vgg_ddp.run.checkpoint import State
from vgg_ddp.run.console import TrainingProgress, say
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.metrics_log import MetricsLog
from vgg_ddp.run.resolved import ResolvedRun
from vgg_ddp.training import continuing, cuda_graph, divergence, environment
from vgg_ddp.training.job import Job, build_job
from vgg_ddp.training.loading import resume
from vgg_ddp.training.profiling import traced
from vgg_ddp.training.recorder import Recorder
from vgg_ddp.training.shrunk_images import statistics_at_evaluated_size
from vgg_ddp.training.stopping import StopRequest, note_validation


def train(job: Job, state: State, recorder: Recorder, stop: StopRequest) -> None:
    """Take the steps that are left, or those until `stop` says so.

    Raises:
        StoppedOnRequest: a signal came; a checkpoint was saved.
    """
    config, engine = job.config, job.engine
    step = cuda_graph.recorded(partial(take_step, job, recorder), config, job.world)
    while not job.finished(state):
        for batch in recorder.timed(job.batches(state)):
            learning_rate = config.optimizer.learning_rate * job.schedule(state.step, state.accuracies)
            optimizers.set_learning_rate(engine.optimizer, learning_rate)
            seed_dropout(config.seed, state.step, job.world.rank)
            step(batch, job.side(state.epoch))
            job.average.update(state.step)
            state.step_taken(shrunk=job.side(state.epoch) is not None)
            recorder.step_done(learning_rate, config.log.every_steps)
            if stop.agreed(state.step):
                save(job, state, recorder)
                raise StoppedOnRequest
            if config.checkpoint.every_steps and state.step % config.checkpoint.every_steps == 0:
                save(job, state, recorder)
        finish_epoch(job, state, recorder)


def take_step(job: Job, recorder: Recorder, batch: Batch, side: int | None) -> None:
    """Forward, backward and update with one local batch; nothing in it waits for the device."""
    batch, accumulation = job.data.train_loader.finish(batch), job.config.accumulation
    for number, micro in enumerate(batch.micro_batches(accumulation), start=1):
        micro = job.chosen.of(micro, job.inputs, side)
        images, targets = job.inputs(micro, side)
        loss, logits = job.engine.forward(images, targets, last=number == accumulation)
        job.engine.backward(loss)
        recorder.add(loss, logits, micro.labels)
        job.answers.add(logits, micro)
    job.engine.step()


def finish_epoch(job: Job, state: State, recorder: Recorder) -> None:
    """Write the epoch's means, validate, save, and let the stopping rule decide."""
    job.engine.synchronise()
    recorder.row()
    recorder.epoch_row()
    job.answers.end_epoch(state)
    state.epoch, state.step_in_epoch = state.epoch + 1, 0
    best = False
    last = state.step >= job.total_steps
    if len(job.data.validation) and (last or state.epoch % job.config.evaluate.every_epochs == 0):
        best = validate(job, state, recorder)
    if best or last or state.stopped or state.epoch % job.config.checkpoint.every_epochs == 0:
        save(job, state, recorder, best)
    recorder.resume_clock()  # so that validation does not count as step time


def validate(job: Job, state: State, recorder: Recorder) -> bool:
    """Evaluate on the images held out from training; whether the accuracy is the best so far."""
    config, world = job.config, job.world
    world.activity.enter("validate")
    network = job.evaluated_network()
    with statistics_at_evaluated_size(job, network, state):
        samples = job.data.validation.samples
        predictions = predict(network, job.preprocess, job.data.validation_loader, samples, config, world)
    found, per_class = torch.tensor([0.0, 0.0], dtype=torch.float64), None
    if predictions is not None:
        found = torch.tensor([loss(predictions), accuracy(predictions)], dtype=torch.float64)
        per_class = class_accuracies(predictions, len(job.data.dataset.classes))
        recorder.watch.validated(predictions.sample_index, predictions.label, predictions.logits)
    validation_loss, validation_accuracy = world.sum(found).tolist()
    recorder.scope_row("validation", validation_loss, validation_accuracy, per_class)
    best = note_validation(config, state, validation_accuracy, validation_loss)
    if world.is_main:
        news = plateau.news(config.schedule, state.accuracies)
        say(f"epoch {state.epoch}  validation loss {validation_loss:.3f}  accuracy {validation_accuracy:.2%}{news}")
    return best


def save(job: Job, state: State, recorder: Recorder, best: bool = False) -> None:
    """Begin to write a checkpoint of this moment."""
    recorder.row()
    weights = job.engine.weights()
    optimizer, state.engine = job.engine.state()
    ema = job.average.network.state_dict() if job.config.ema else None
    job.saver.save(weights, optimizer, state, ema, best, job.answers.so_far(state))
    recorder.resume_clock()


def run(resolved: ResolvedRun, world: World) -> None:
    """Train and evaluate: one whole run, from the same resolved configuration on every rank.

    Raises:
        UserError: what was asked for does not fit the data or the ranks.
        StoppedOnRequest: a signal came; a checkpoint was saved.
    """
    from vgg_ddp.report.live import LivePage
    from vgg_ddp.trackers.follow import followed

    config, precision_reason = precision.set_arithmetic(resolved.config, world.device, world.of_all)
    directory = RunDirectory(resolved.run)
    with contextlib.ExitStack() as stack:
        with world.together():
            if world.is_main:
                stack.enter_context(directory.claimed(new=config.resume == "never"))
            dataset = Dataset(resolved.dataset)
            if world.local_rank == 0:
                dataset.verify(at_most=QUICKLY_READ)
        preflight.must_be_the_same_data(dataset, world)
        with world.together():
            job = build_job(config, dataset, directory, world)
            config = job.config
        state = resume(job)
        finished = job.finished(state)
        if finished:
            if (as_trained := continuing.as_trained(job, state)) is None:
                return
            config = as_trained
        elif world.is_main:
            changes = continuing.changes_so_far(job, state)
            directory.write_json(directory.environment, environment.describe(job, resolved, precision_reason, changes))
            directory.write(directory.config, dump(with_absolute_paths(config)))
            directory.summary.unlink(missing_ok=True)  # of an earlier end
            of_run.keep(directory, dataset)
            chosen = [*resolved.choices, *environment.choices(job), *job.data.fallbacks]
            said = [environment.sentence(job), *chosen, *changes]
            say("\n".join(said))
        trackers = resolved.trackers if world.is_main else {}
        stack.enter_context(followed(config, directory, dataset.directory, state, trackers))
        watch = stack.enter_context(LivePage(job)) if world.is_main else None
        if not finished:
            log = stack.enter_context(MetricsLog(directory.metrics)) if world.is_main else None
            progress = stack.enter_context(TrainingProgress(job.total_steps, state.step, shown=world.is_main))
            steps_per_epoch, left = job.data.order.steps_per_epoch, job.total_steps - state.step
            stop = StopRequest(world, config.log.every_steps, config.communication.synchronise_every)
            with stop, job.saver, traced(config.profile if world.is_main else 0, left, directory.trace) as after_step:
                overflows = config.precision == "fp16" or config.loss.on_nonfinite == "skip"
                shown = after_step, job.engine.figures, overflows, watch, partial(divergence.where, job, take_step)
                recorder = Recorder(state, world, config.batch, steps_per_epoch, job.total_steps, log, progress, *shown)
                train(job, state, recorder, stop)
            progress.close()
        peak = memory.peak_bytes(world)
        if world.is_main and not (finished and directory.summary.exists()):
            directory.write_json(directory.summary, environment.summary(job, state, peak))
        checkpoint = continuing.to_evaluate(directory, config, world)
        evaluate.evaluate_and_report(config, dataset, directory, checkpoint, world)


def main(arguments: list[str]) -> int:
    """One rank of a training: `CONFIG [key=value ...]`, or what `vgg-ddp train` hands its ranks; returns the exit code."""

    def body(world: World) -> None:
        resolved = preflight.on_ranks(arguments, world, partial(preflight.check_training, ranks=world.size))
        world.use_cores(resolved.config)
        run(resolved, world)

    return rank_process.run(body, preflight.devices(arguments, load))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
