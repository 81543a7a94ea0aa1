"""Renders a template as one HTML file that needs no other file and makes no request."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vgg_ddp.errors import UserError
from vgg_ddp.run.files import replace_file

_HERE = Path(__file__).parent


@cache
def templates() -> jinja2.Environment:
    """The pages' templates, each compiled once a process."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["width"] = lambda share: Markup(f"{100 * share:.2f}%")
    return environment


def filled(template: str, values: dict[str, Any]) -> bytes:
    """The page that `template` becomes with `values`.

    Its content security policy allows one script, by its hash, and no request to anywhere.
    """
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    page = templates().get_template(template)
    html: str = page.render(
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        **values,
    )
    return html.encode(errors="replace")


def render(template: str, values: dict[str, Any], path: Path) -> Path:
    """Write `template`, filled with `values`, to `path`.

    Raises:
        UserError: the page cannot be written.
    """
    html = filled(template, values)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, html)
    except OSError as error:
        raise UserError(f"the report {path} cannot be written: {error.strerror or error}") from None
    return path


def embedded(value: Any) -> Markup:
    """`value` as JSON for a <script> element, without a character that could end it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
