"""A run that was checked before its ranks start: what they are handed."""

from __future__ import annotations

import msgspec

from vgg_ddp.config import Config

RESOLVED = "--resolved="  # before the only argument of a rank whose launcher has checked everything


class ResolvedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A training or an evaluation that was checked: what its ranks need to know.

    Attributes:
        config: the configuration; what depends on the data set is settled ("auto" is left where it depends on the device).
        run: the run's folder.
        checkpoint: the checkpoint to evaluate; "" in a training.
        out: the folder in which evaluation/ and report/ are written, or the page of one's own images; "": the run's.
        dataset: the folder of the prepared data set, the same path on every host.
        trackers: the trackers to start, by name, with the mode of each.
        fallbacks: what was used in place of what was asked for.
        choices: what was chosen for keys that say auto, a line each.
        command: the command line that a person typed.
    """

    config: Config
    run: str
    checkpoint: str = ""
    out: str = ""
    dataset: str
    trackers: dict[str, str]
    fallbacks: list[str]
    choices: list[str]
    command: str

    def argument(self) -> str:
        """All of it as one argument for a rank."""
        return RESOLVED + msgspec.json.encode(self).decode()

    def resumed(self) -> ResolvedRun:
        """The same, continued."""
        return msgspec.structs.replace(self, config=msgspec.structs.replace(self.config, resume="auto"))

    @staticmethod
    def of_argument(argument: str) -> ResolvedRun | None:
        """The reverse of `argument`; None for an argument of another kind."""
        if not argument.startswith(RESOLVED):
            return None
        return msgspec.json.decode(argument.removeprefix(RESOLVED), type=ResolvedRun)
