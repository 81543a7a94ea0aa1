"""From a template and its values to one HTML file that needs nothing else and lets nothing else in."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vgg_ddp.errors import UserError

_HERE = Path(__file__).parent


def render(template: str, values: dict[str, Any], path: Path) -> Path:
    """Write `template`, filled with `values`, to `path`.

    The page's content security policy allows one script, by its hash, and no request to anywhere.

    Raises:
        UserError: the page cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["width"] = lambda share: Markup(f"{100 * share:.2f}%")
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        **values,
    )
    return _write(page, path)


def embedded(value: Any) -> Markup:
    """JSON to stand in a <script> element: without a character that could end it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _write(page: str, path: Path) -> Path:
    """Write aside, then move into place: a reader sees the old page or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(page, encoding="utf-8", errors="replace")
        os.replace(aside, path)
    except OSError as error:
        raise UserError(f"the report {path} cannot be written: {error.strerror or error}") from None
    finally:
        aside.unlink(missing_ok=True)
    return path
