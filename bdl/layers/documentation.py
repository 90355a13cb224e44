"""Docstrings of layers that take another layer's arguments: each argument is told in full, from where it is defined.

A family of layers has the arguments of a Keras layer, or of a base class, and those of its posterior. Their texts are
read from the docstrings of these classes when the layer is defined, so that none is written twice.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

_ENTRY = re.compile(r"^ {4,6}(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \([^)]*\))?: ?(.*)$")
_LATER = re.compile(r"^(Args|Call arguments|Raises|Sources?|Examples?)\b[^:\n]*:")
_INDENT = re.compile(r"^ {1,8}")
_KWARGS = "`name`, `dtype` and `trainable`, as for every Keras layer."


def complete_docstring(cls: type, sources: Sequence[type], otherwise: str = "") -> None:
    """Gives a class's docstring an `Args` section with every argument of its signature, and `Raises` if it has none.

    Args:
        cls: The class. Its own docstring goes before the others.
        sources: Classes whose docstrings tell the other arguments, the nearest first.
        otherwise: The text of an argument that none of them tells.

    Raises:
        ValueError: if none of them tells an argument, and there is no text for it.
    """
    if cls.__doc__ is None:  # python -OO
        return
    docs = [inspect.cleandoc(each.__doc__ or "") for each in (cls, *sources)]
    told: dict[str, list[str]] = {}
    for doc in reversed(docs):
        told |= _entries(_section(doc, "Args"))
    told["**kwargs"] = [_KWARGS]
    lines = ["Args:"]
    for parameter in inspect.signature(cls).parameters.values():
        name = f"**{parameter.name}" if parameter.kind is inspect.Parameter.VAR_KEYWORD else parameter.name
        first, *rest = told.get(name, [otherwise])
        if not first:
            raise ValueError(f"No docstring tells the argument {name!r} of {cls.__name__}. Add it to one of {sources}.")
        lines += [f"    {name}: {first}", *(f"        {line}".rstrip() for line in rest)]
    if not _section(docs[0], "Raises"):
        raises = next((found for doc in docs[1:] if (found := _section(doc, "Raises"))), [])
        lines += ["", "Raises:", *raises] if raises else []
    own = docs[0].splitlines()
    begin = next((i for i, line in enumerate(own) if i and _LATER.match(line)), len(own))
    end = begin
    if end < len(own) and own[end] == "Args:":
        end += 1 + len(_section(docs[0], "Args"))
        while end < len(own) and not own[end]:
            end += 1
    cls.__doc__ = "\n".join([*own[:begin], *lines, "", *own[end:]])


def with_arguments_of(cls: type, base: type) -> inspect.Signature:
    """The arguments of a class, and by name those of its base, which it takes as `**kwargs`."""
    *own, rest = inspect.signature(cls).parameters.values()
    taken = {parameter.name for parameter in own}
    others = [each for each in inspect.signature(base).parameters.values() if each.name not in taken | {rest.name}]
    return inspect.Signature([*own, *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in others), rest])


def _section(doc: str, name: str) -> list[str]:
    """The lines below a heading, up to the next line without an indent."""
    lines = doc.splitlines()
    if f"{name}:" not in lines:
        return []
    below = lines[lines.index(f"{name}:") + 1 :]
    size = next((i for i, line in enumerate(below) if line and not line.startswith(" ")), len(below))
    while size and not below[size - 1]:
        size -= 1
    return below[:size]


def _entries(section: list[str]) -> dict[str, list[str]]:
    """The lines of each argument's text, without their indent."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in section:
        if entry := _ENTRY.match(line):
            names = entry.group(1).split(", ")
            found |= {name: [entry.group(2)] for name in names}
        else:
            for name in names:
                found[name].append(_INDENT.sub("", line))
    return found
