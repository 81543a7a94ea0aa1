"""The command line: reads the arguments and the configuration, then hands both to a launcher.

Nothing here imports torch before both have been checked.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from vgg_ddp import config
from vgg_ddp.errors import EXIT_USER_ERROR, Signalled, UserError, signals_raise

from .plan import count
from .registry import LAUNCHERS


def main(arguments: Sequence[str] | None = None, prog: str = f"python -m {__package__}") -> None:
    """Start a training and exit with its code; `prog` is the command's name in its help."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # c10d warns of hosts whose address has no name
    with signals_raise():
        sys.exit(_run(arguments, prog))


def _run(arguments: Sequence[str] | None, prog: str) -> int:
    try:
        options = _parse(arguments, prog)
        return options.start(options, config.load(options.config, options.overrides))
    except UserError as error:
        print(f"launch: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Signalled as signalled:  # before a rank has started here: after that a launcher passes the signal on
        print(f"launch: {signalled}; nothing to save", file=sys.stderr)
        return signalled.exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; see '{self.prog} --help'")


def _parse(arguments: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """The options; key=value overrides may stand anywhere after CONFIG, which argparse alone does not allow."""
    parser = _parser(prog)
    options, rest = parser.parse_known_args(arguments)
    unknown = [argument for argument in rest if argument.startswith("-") or "=" not in argument]
    if unknown:
        parser.error(f"unknown argument {unknown[0]}")
    options.overrides += rest
    return options


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description="Start a training on one host or many.")
    commands = parser.add_subparsers(metavar="LAUNCHER", required=True, parser_class=_Parser)
    for name, launcher in LAUNCHERS.items():
        command = commands.add_parser(name, help=launcher.summary, description=launcher.summary)
        command.add_argument("config", help="a YAML file, e.g. configs/quickstart.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
        command.add_argument("--nodes", type=count, default=1, metavar="N", help="hosts (default 1)")
        command.add_argument(
            "--nproc", type=count, metavar="N", help="ranks on each host (default: the config's nproc)"
        )
        command.add_argument("--dry-run", action="store_true", help="print what would be started, and start nothing")
        launcher.add_options(command)
        command.set_defaults(start=launcher.start)
    return parser
