"""For the site: signatures without `**unknown`, which is there to explain misspelt arguments; mkdocs.yml names this."""

from __future__ import annotations

from typing import Any

import griffe


class WithoutUnknown(griffe.Extension):
    """Takes `**unknown` out of what the reference shows."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Called with each function once it is read."""
        if "unknown" in func.parameters and func.parameters["unknown"].kind is griffe.ParameterKind.var_keyword:
            del func.parameters["unknown"]
