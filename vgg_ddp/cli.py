"""The command line. Nothing here imports torch before the arguments and the configuration are known to be right."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_ddp import __version__
from vgg_ddp.errors import EXIT_OK, EXIT_USER_ERROR, Signalled, UserError, signals_raise

if TYPE_CHECKING:
    from vgg_ddp.run.resolved import ResolvedRun


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. `SystemExit` is caught, so that a notebook can call it too."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that has no such letter shows a question mark
    with signals_raise():  # so that half-written files are removed
        return _run(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        options = _parsed(arguments)
        code = options.run(options)
    except UserError as error:
        with contextlib.suppress(OSError):  # nobody reads it
            print(f"vgg-ddp: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except SystemExit as ended:  # by --help, or as the launchers end
        code = ended.code
    except Signalled as signalled:
        with contextlib.suppress(OSError):
            print(f"vgg-ddp: {signalled}; nothing to save", file=sys.stderr)
        code = signalled.exit_code
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    return int(code or EXIT_OK)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, including words that follow an option: argparse itself accepts only those before it.

    Raises:
        UserError: an argument that the command does not know.
    """
    parser = _parser()
    options, behind = parser.parse_known_args(arguments)
    taking = [name for name in ("words", "overrides") if name in options]
    if behind and (not taking or any(word.startswith("-") for word in behind)):
        parser.error(f"unrecognized arguments: {' '.join(behind)}")
    for name in taking:
        setattr(options, name, [*getattr(options, name), *behind])
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see '{self.prog} --help'")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vgg-ddp", description="Distributed training of the VGG networks.")
    parser.add_argument("--version", action="version", version=f"vgg-ddp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    prepare = commands.add_parser("prepare", help="make a dataset from an image folder, an archive or the digits")
    prepare.add_argument("source", help="cifar10, cifar100, digits, an image folder, or an archive (docs/data.md)")
    prepare.add_argument("--out", required=True, type=Path, help="the dataset's directory; must not exist yet")
    prepare.add_argument(
        "--storage",
        choices=("original", "raw", "jpeg", "jpeg2000"),
        default="original",
        help="original: files or pixels as they are, PNG for files that decoders read differently (default); "
        "raw: decoded pixels, for images of one size; "
        "jpeg: JPEG files as they are, the rest encoded lossily; jpeg2000: all encoded losslessly",
    )
    prepare.add_argument("--quality", type=int, default=95, help="quality of --storage jpeg, 1 to 100 (default 95)")
    prepare.add_argument(
        "--chroma",
        choices=("4:4:4", "4:2:2", "4:2:0"),
        default="4:4:4",
        help="chroma subsampling of --storage jpeg (default 4:4:4)",
    )
    prepare.add_argument(
        "--unreadable", choices=("refuse", "drop"), default="refuse", help="images that cannot be read (default refuse)"
    )
    prepare.add_argument(
        "--unusual",
        choices=("convert", "refuse"),
        default="convert",
        help="images that are animated, tiny, huge, wrongly named or not 8-bit RGB: convert to RGB (default) or refuse",
    )
    prepare.add_argument(
        "--test-share", type=float, default=0.2, help="share of each class to test on, if there is no test split (0.2)"
    )
    prepare.add_argument("--split-seed", type=int, default=0, help="seed that draws --test-share (default 0)")
    prepare.set_defaults(run=_prepare)

    train = commands.add_parser(
        "train", help="train, evaluate and report, on every device of this host", add_help=False
    )
    train.add_argument("-h", "--help", action=_TrainHelp, help="list every key")
    train.add_argument("config", help="a YAML file, e.g. configs/quickstart.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    train.set_defaults(run=_train)

    launch = commands.add_parser(
        "launch",
        help="start a training on one host or many: torchrun, DeepSpeed, Slurm, Kubernetes",
        add_help=False,
        prefix_chars="\0",  # no argument is an option of this parser: all go to the launcher's own
    )
    launch.add_argument("arguments", nargs=argparse.REMAINDER)
    launch.set_defaults(run=_launch)

    evaluate = commands.add_parser(
        "evaluate", help="evaluate a run, a checkpoint or several together on the test images"
    )
    evaluate.add_argument("target", metavar="RUN|CHECKPOINT", help="a run directory, or a checkpoint in one")
    evaluate.add_argument(
        "words",
        nargs="*",
        metavar="RUN|key=value",
        help="more runs, whose soft-max is averaged with the first's (with --out); changes to the runs' configuration",
    )
    evaluate.add_argument(
        "--images", type=Path, metavar="FOLDER|IMAGE", help="show what it makes of these images instead"
    )
    evaluate.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where to write; default: in the run, or for another data set or protocol in RUN/evaluations",
    )
    evaluate.add_argument(
        "--protocol",
        metavar="NAME",
        help="single, shifted, dense, multicrop or dense+multicrop (docs/testing.md); the same as evaluate.protocol=NAME",
    )
    evaluate.set_defaults(run=_evaluate)

    study = commands.add_parser(
        "study",
        help="train configurations side by side with several seeds, and say which is best and what each key does",
    )
    study.add_argument("config", type=Path, help="what to vary (docs/homework.md), e.g. configs/studies/epochs.yaml")
    study.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration that is varied")
    study.add_argument("--out", type=Path, metavar="FOLDER", help="the study's folder; default: studies/NAME of CONFIG")
    study.add_argument(
        "--learning-rate",
        action="store_true",
        help="look for a learning rate for the training of CONFIG: a short run in which it rises until the loss does",
    )
    study.set_defaults(run=_study)

    report = commands.add_parser(
        "report",
        help="draw the report of a run, whatever state it is in, or of a study, or put several runs side by side",
    )
    report.add_argument("targets", type=Path, nargs="+", metavar="RUN", help="run directories; others follow the first")
    report.add_argument(
        "--against",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="compare recipes: runs of one with several seeds, against runs of another with several seeds",
    )
    report.add_argument(
        "--out",
        type=Path,
        help="where to write runs side by side; default: FIRST RUN/report/comparison.html, with --against recipes.html there",
    )
    report.set_defaults(run=_report)

    table = commands.add_parser(
        "table", help="errors of runs by every protocol, in the form of the paper's tables 3 to 6"
    )
    table.add_argument("targets", type=Path, nargs="+", metavar="RUN", help="run directories, or --out of several")
    table.add_argument("--format", choices=("text", "csv", "markdown"), default="text", help="default text")
    table.set_defaults(run=_table)

    verify = commands.add_parser("verify", help="check every hash of a dataset, or of a run's checkpoints")
    verify.add_argument("target", type=Path, metavar="RUN|DATASET", help="a run directory or a dataset")
    verify.set_defaults(run=_verify)

    export = commands.add_parser("export", help="write a trained network for other programs, with a model card")
    export.add_argument("target", type=Path, metavar="RUN|CHECKPOINT", help="a run directory, or a checkpoint in one")
    export.add_argument("--format", required=True, choices=("safetensors", "onnx", "torch-export"))
    export.add_argument("--out", type=Path, help="the file to write; RUN/export/model.* by default")
    export.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the run's configuration")
    export.set_defaults(run=_export)

    dashboard = commands.add_parser(
        "dashboard", help="make a W&B workspace and report that show every run of a project"
    )
    dashboard.add_argument("--project", default="vgg_ddp", help="W&B project; vgg_ddp by default")
    dashboard.add_argument("--entity", help="W&B team or user; the login's own by default")
    dashboard.add_argument("--dry-run", action="store_true", help="check the definition and print it, without W&B")
    dashboard.set_defaults(run=_dashboard)

    doctor = commands.add_parser("doctor", help="what this machine has, what it lacks, what to do")
    doctor.set_defaults(run=_doctor)
    return parser


class _TrainHelp(argparse.Action):
    def __init__(self, **settings: object) -> None:
        super().__init__(nargs=0, **settings)  # type: ignore[arg-type]

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from vgg_ddp.config.describe import describe_keys

        print(f"usage: {parser.prog} CONFIG [key=value ...]\n\n{describe_keys()}")
        parser.exit()


def _prepare(options: argparse.Namespace) -> int:
    if not 1 <= options.quality <= 100:
        raise UserError(f"--quality {options.quality} is not between 1 and 100")
    if not 0 < options.test_share < 1:
        raise UserError(f"--test-share {options.test_share:g} is not between 0 and 1")
    if not 0 <= options.split_seed < 2**63:
        raise UserError(f"--split-seed {options.split_seed} is not between 0 and 2^63")
    from vgg_ddp.data.conversion import Policy
    from vgg_ddp.data.prepare import prepare
    from vgg_ddp.data.storage import Storage
    from vgg_ddp.run.console import say

    storage = Storage(options.storage, options.quality, options.chroma)
    policy = Policy(options.unreadable, options.unusual, options.test_share, options.split_seed)
    prepare(options.source, options.out, say, options.out.parent / "downloads", storage, policy)
    return EXIT_OK


def _train(options: argparse.Namespace) -> int:
    from vgg_ddp import preflight

    resolved = preflight.check_training(options.config, options.overrides)

    from vgg_ddp.distributed import launcher
    from vgg_ddp.distributed.supervisor import Task

    ranks = launcher.ranks_of_this_host(resolved.config)
    resolved.config.local_batch(ranks)
    config = resolved.config
    words = [resolved.argument()], [resolved.resumed().argument()]
    return launcher.start(Task("vgg_ddp.train", *words, config.restarts, config.timeout), ranks)


def _launch(options: argparse.Namespace) -> int:
    try:  # the folder launch/ of a checkout, which setup.py installs under this name
        command_line = importlib.import_module("vgg_ddp.launch.command_line")
    except ModuleNotFoundError as error:
        if error.name != "vgg_ddp.launch":
            raise
        raise UserError("this checkout is not installed (make setup); in it, python -m launch does the same") from None
    command_line.main(options.arguments, prog="vgg-ddp launch")
    return EXIT_OK  # not reached: main exits with the launcher's code


def _evaluate(options: argparse.Namespace) -> int:
    from vgg_ddp import preflight

    more = [word for word in options.words if "=" not in word or "/" in word.partition("=")[0]]
    overrides = [word for word in options.words if word not in more]
    if options.images is not None and more:
        raise UserError("--images shows images to one network; leave out further runs")
    overrides += [f"evaluate.protocol={options.protocol}"] if options.protocol is not None else []
    if more:
        return _evaluate_together([options.target, *more], overrides, options.out)
    resolved = preflight.check_evaluation(options.target, overrides, options.images, options.out)
    if options.images is None:
        return _start_evaluation(resolved)

    from vgg_ddp import evaluate
    from vgg_ddp.distributed import launcher

    with launcher.own_ranks():
        return evaluate.main([resolved.argument()], options.images)


def _start_evaluation(resolved: ResolvedRun) -> int:
    from vgg_ddp.distributed import launcher
    from vgg_ddp.distributed.supervisor import Task

    words = [resolved.argument()]
    task = Task("vgg_ddp.evaluate", words, words, timeout=resolved.config.timeout)
    return launcher.start(task, launcher.ranks_of_this_host(resolved.config))


def _evaluate_together(runs: list[str], overrides: list[str], out: Path | None) -> int:
    if out is None:
        raise UserError("several runs are evaluated together into a folder of their own; name it with --out FOLDER")
    from vgg_ddp import preflight
    from vgg_ddp.evaluation import ensemble

    preflight.must_be_no_run(out)

    folders = [out / "members" / f"{number}-{Path(run).resolve().name}" for number, run in enumerate(runs, start=1)]
    members = [preflight.check_evaluation(run, overrides, None, folder) for run, folder in zip(runs, folders)]
    dataset = ensemble.common_test_set(members)
    for member in members:
        if code := _start_evaluation(member):
            return code

    from vgg_ddp import evaluate
    from vgg_ddp.report import write_report
    from vgg_ddp.run.console import say

    evaluate.show(ensemble.combine(members, dataset, out), f"by the average of {len(runs)} networks")
    say(f"report: {write_report(out, dataset)}")
    return EXIT_OK


def _study(options: argparse.Namespace) -> int:
    if options.learning_rate:
        from vgg_ddp.study import learning_rate

        return learning_rate.run(options.config, options.overrides, options.out)
    from vgg_ddp.study import command

    return command.run(options.config, options.overrides, options.out)


def _report(options: argparse.Namespace) -> int:
    from vgg_ddp.run.directory import RunDirectory, find_run

    first, *others = options.targets
    if options.out and not (others or options.against):
        raise UserError("--out is for runs side by side; the report of one run stands in RUN/report/index.html")
    if os.path.isfile(first / "definition.yaml") and not (others or options.against):
        from vgg_ddp.study import command

        print(command.report(first))
        return EXIT_OK
    run, _ = find_run(first)
    # A checkpoint stands for its run; folders of several networks' answers stay what they are.
    targets, against = (
        [find_run(one)[0].path if os.path.isfile(one / "manifest.json") else one for one in given]
        for given in (options.targets, options.against or [])
    )

    from vgg_ddp.data import of_run
    from vgg_ddp.report import write_recipes, write_report, write_side_by_side
    from vgg_ddp.run import outcome
    from vgg_ddp.run.metrics_log import read_metrics

    for target in (run, *map(RunDirectory, (*targets[1:], *against))):
        account = outcome.account(target, read_metrics(target.metrics))
        if account.state:
            print(f"{target.path}: {account.words} {account.command}".rstrip())
    if against:
        out = options.out or run.report.with_name("recipes.html")
        print(write_recipes(against, targets, out))
        return EXIT_OK
    dataset = of_run.find(run)
    if dataset is None and (run.evaluation / "summary.json").is_file():
        print(f"the images of {first} are gone: its pages have the pictures that it keeps of them, if any")
    if others:
        print(write_side_by_side(targets, dataset, options.out or run.report.with_name("comparison.html")))
    else:
        print(write_report(run.path, dataset))
    return EXIT_OK


def _table(options: argparse.Namespace) -> int:
    from vgg_ddp.report import error_table
    from vgg_ddp.run.console import table

    rows, left_out = error_table.rows(options.targets)
    for reason, evaluations in left_out.items():
        print(f"left out, as {reason}: {evaluations}", file=sys.stderr)
    if options.format == "text":
        table(error_table.TITLE, error_table.ON_SCREEN, rows)
    else:
        print({"csv": error_table.as_csv, "markdown": error_table.as_markdown}[options.format](rows), end="")
    return EXIT_OK


def _verify(options: argparse.Namespace) -> int:
    from vgg_ddp.data.dataset import Dataset

    if os.path.isfile(options.target / "dataset.json"):
        files = Dataset(options.target).verify()
        print(f"{options.target}: {files} files, every hash is right")
        return EXIT_OK
    from vgg_ddp.run import checkpoint
    from vgg_ddp.run.directory import find_run

    run, _ = find_run(options.target)
    folders = checkpoint.find(run.checkpoints)
    if not folders:
        raise UserError(f"{options.target} has no checkpoint")
    for folder in folders:
        checkpoint.read(folder)
    print(f"{options.target}: {len(folders)} checkpoints, every hash is right")
    return EXIT_OK


def _export(options: argparse.Namespace) -> int:
    from vgg_ddp.run.directory import find_run

    find_run(options.target)
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if options.format == "onnx" and lacking:
        raise UserError(f"--format onnx needs {', '.join(lacking)}; pip install 'vgg_ddp[export]'")

    from vgg_ddp.export import export

    done = export(options.target, options.format, options.out, options.overrides)
    print(f"the same predictions on {done.images}; logits differ by at most {done.largest_difference:.2g}")
    print(f"written: {done.path}\nmodel card: {done.card}")
    return EXIT_OK


def _dashboard(options: argparse.Namespace) -> int:
    from vgg_ddp.trackers import dashboard, modes

    if options.dry_run:
        print(dashboard.described(dashboard.definition()))
        return EXIT_OK
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("vgg-ddp dashboard needs wandb-workspaces; pip install 'vgg_ddp[wandb]', or use --dry-run")
    if not modes.logged_in():
        raise UserError(
            "vgg-ddp dashboard needs a W&B login; run 'wandb login', or use --dry-run to see what it would make"
        )
    try:
        print("\n".join(dashboard.create(options.project, options.entity)))
    except UserError:
        raise
    except Exception as error:  # W&B raises many kinds of errors: no network, a wrong name, no permission
        raise UserError(f"W&B did not take the dashboard: {error}") from None
    return EXIT_OK


def _doctor(options: argparse.Namespace) -> int:
    from vgg_ddp.doctor import examine

    return examine()
