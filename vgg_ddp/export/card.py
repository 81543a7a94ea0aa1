"""The model card (Mitchell et al. 2019, "Model cards for model reporting"), made from what a run left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vgg_ddp.config import Config
from vgg_ddp.data.dataset import Dataset
from vgg_ddp.export.formats import Contents
from vgg_ddp.run.directory import RunDirectory
from vgg_ddp.run.files import file_sha256, read_json, replace_file


def write_card(
    run: RunDirectory, config: Config, dataset: Dataset, contents: Contents, exported: Path, format_name: str
) -> Path:
    """Write RUN/model_card.md; its path."""
    templates = Environment(
        loader=PackageLoader("vgg_ddp.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; `shown` escapes what others have written
    )
    templates.filters["shown"] = shown
    evaluation = read_json(run.evaluation / "summary.json")
    if evaluation and evaluation["checkpoint_sha256"] != contents.checkpoint_sha256:
        evaluation = None  # of another checkpoint
    text = templates.get_template("card.md.j2").render(
        config=config,
        dataset=dataset.record,
        contents=contents,
        exported=exported,
        exported_sha256=file_sha256(exported),
        format_name=format_name,
        evaluation=evaluation,
        training=read_json(run.summary),
        environment=read_json(run.environment),
        worst=_worst(evaluation) if evaluation else None,
    )
    card = run.path / "model_card.md"
    replace_file(card, text.encode())
    return card


def shown(text: object) -> str:
    """Text that others wrote, such as a class's name, so that Markdown shows it as it is: on one line, without markup."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()<>#+!|~&" else letter for letter in line)


def _worst(evaluation: dict[str, Any]) -> tuple[dict[str, Any], str, int] | None:
    """The class that stands out as worst, what it is taken for most often, and how often; None where none stands out."""
    if not evaluation["worst"]:
        return None
    worst = evaluation["classes"].index(evaluation["worst"][0])
    mistakes = [(count, j) for j, count in enumerate(evaluation["confusion"][worst]) if j != worst]
    count, other = max(mistakes, default=(0, worst))
    return evaluation["per_class"][worst], evaluation["classes"][other], count
