"""The page: one HTML file with data, style, script and plotly within; nothing of a run can be markup or code in it."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from ..output import plain

MARK = "<!-- paddlelite report -->"
_HERE = Path(__file__).parent
_IN_A_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def page_of(data: dict[str, Any], *, live_seconds: float = 0.0) -> bytes:
    """The file's bytes; with `live_seconds` it asks its server for news that often.

    A policy in its head allows the scripts of this page alone and no connection but to its own server. Data are JSON
    with no character that could end the script element, and the script makes text of them, never markup.
    """
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    assert "</script" not in plotly
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(_HERE), undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        mark=Markup(MARK),
        nonce=secrets.token_urlsafe(18),
        runs=data["runs"],
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        plotly=Markup(plotly),
        data=Markup(as_json(data).translate(_IN_A_SCRIPT)),
        live_seconds=live_seconds,
    )
    return page.encode("utf-8", "replace")


def as_json(data: dict[str, Any]) -> str:
    """JSON in ASCII; it has no NaN and no infinity, so they are words."""
    return json.dumps(plain(data), allow_nan=False, separators=(",", ":"))
