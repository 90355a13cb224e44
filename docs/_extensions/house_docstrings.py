"""Tells Sphinx how docstrings are written in this house, before napoleon reads their sections.

An example stands at the left margin under "Example:", formulas stand indented in the text, and a source may say of what
it is ("Source of ..."): napoleon wants an indented example, and reStructuredText takes the formulas for quotations.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

_HEADING = re.compile(r"^([A-Z][\w ]*):$")


def rewritten(lines: list[str]) -> list[str]:
    """The lines of a docstring, as napoleon and reStructuredText want them."""
    result: list[str] = []
    in_section = False
    for number, line in enumerate(lines):
        before = next((each for each in reversed(lines[:number]) if each.strip()), "")
        follows_blank = number > 0 and not lines[number - 1].strip()
        if line and not line[0].isspace():
            in_section = bool(_HEADING.match(line)) and line.rstrip(":") not in ("Example", "Examples")
        if line in ("Example:", "Examples:"):
            result += [f".. rubric:: {line[:-1]}", ""]
            continue
        follows_text = bool(before[:1].strip()) and not before.startswith(("-", "*", ">>>"))
        if line.startswith("    ") and follows_blank and follows_text and not in_section:
            result += ["::", ""]
        result.append(line)
    return result


def _process(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    lines[:] = rewritten(lines)


def _signature(app: Any, what: str, name: str, found: Any, options: Any, signature: str, returns: str) -> Any:
    """The arguments of a Keras layer or model, whose `__new__` takes any."""
    if what != "class" or (not hasattr(found, "__signature__") and signature != "(*args, **kwargs)"):
        return None
    parameters = inspect.signature(found).parameters.values()
    return str(inspect.Signature([each.replace(annotation=inspect.Parameter.empty) for each in parameters])), returns


def setup(app: Any) -> dict[str, Any]:
    """Tells Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True}
