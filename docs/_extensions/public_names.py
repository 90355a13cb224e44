"""What is public in bdl, for the pages of the reference: each name has one page, in the room that lists it first."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOMS = re.findall(
    r"^ +(bdl[\w.]*)$", (Path(__file__).parents[1] / "reference" / "index.rst").read_text(), re.MULTILINE
)


def public_names(module: ModuleType) -> list[str]:
    """The names that a module lists, or else those that it defines."""
    own = [name for name, found in vars(module).items() if getattr(found, "__module__", None) == module.__name__]
    return list(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


def pages() -> tuple[dict[str, dict[str, list[str]]], dict[str, list[str]]]:
    """For each public module its names by kind, and those that have their page in another module.

    A module in another one goes by the name under which it is imported, without that of the other.
    """
    contents: dict[str, dict[str, list[str]]] = {}
    elsewhere: dict[str, list[str]] = {}
    homes: dict[int, str] = {}
    modules = list(ROOMS)
    while modules:
        room = modules.pop(0)
        module = importlib.import_module(room)
        contents[room], elsewhere[room] = {}, []
        for name in public_names(module):
            found = getattr(module, name)
            kind = _kind(found)
            if kind == "Modules":
                if found.__name__ in ROOMS:
                    continue
                modules.append(found.__name__)
                name = found.__name__.removeprefix(f"{room}.")
            elif kind != "Constants" and id(found) in homes:
                elsewhere[room].append(homes[id(found)])
                continue
            else:
                homes[id(found)] = f"{room}.{name}"
            contents[room].setdefault(kind, []).append(name)
    return contents, elsewhere


def _kind(found: Any) -> str:
    if inspect.ismodule(found):
        return "Modules"
    if inspect.isclass(found):
        return "Exceptions and warnings" if issubclass(found, BaseException) else "Classes"
    return "Functions" if inspect.isroutine(found) else "Constants"


def texts_of_constants(contents: dict[str, dict[str, list[str]]]) -> dict[str, str]:
    """What stands below a constant where it is defined."""
    names = {f"{room}.{name}": name for room, kinds in contents.items() for name in kinds.get("Constants", [])}
    found: dict[str, str] = {}
    for path in Path(importlib.import_module("bdl").__file__ or "").parent.rglob("*.py"):
        body = ast.parse(path.read_text()).body
        for statement, text in itertools.pairwise(body):
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                targets = getattr(statement, "targets", [getattr(statement, "target", None)])
                found |= {each.id: str(text.value.value) for each in targets if isinstance(each, ast.Name)}
    return {name: " ".join(found.get(own, "").split()) for name, own in names.items()}


def setup(app: Any) -> dict[str, Any]:
    """Tells Sphinx."""
    contents, elsewhere = pages()
    app.config.autosummary_context = {
        "contents": contents,
        "elsewhere": elsewhere,
        "texts": texts_of_constants(contents),
    }
    return {"parallel_read_safe": True}
