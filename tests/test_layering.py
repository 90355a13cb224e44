"""Rooms import only rooms above them, and `import bdl` stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import bdl

PACKAGE = Path(bdl.__file__).parent

# From the top down; docs/design says why. A folder is one room.
ROOMS = [
    "keras_internals",
    "random",
    "serialization",
    "protocols",
    "report",
    "priors",
    "posteriors",
    "uncounted",
    "likelihoods",
    "arguments",
    "schedules",
    "latents",
    "elbo",
    "bounds",
    "estimators",
    "layers",
    "training",
    "optimizers",
    "sampling",
    "prediction",
    "export",
    "model",
    "scoring",
    "svi",
    "convert",
    "recommendation",
    "recipes",
    "sklearn",
    "calibration",
    "metrics",
    "plots",
    "evaluation",
    "diagnostics",
    "ensembles",
    "demo",
    "demo_page",
    "cli",
]


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms that a file imports from bdl, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "bdl" and len(parts) > 1 and parts[1] in ROOMS:
                yield parts[1]


def test_rooms_import_only_rooms_above_them():
    files = [path for path in PACKAGE.rglob("*.py") if room(path) not in ("__init__", "__main__")]
    assert {room(path) for path in files} == set(ROOMS)
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in files
        for other in imported_rooms(path)
        if ROOMS.index(other) > ROOMS.index(room(path))
    ]
    assert wrong == []


def test_private_keras_names_stay_in_one_room():
    offenders = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if room(path) != "keras_internals"
        and ("keras.src" in path.read_text() or "._flatten_layers" in path.read_text())
    ]
    assert offenders == []


def test_only_posteriors_know_which_of_them_is_rank_1():
    """Others ask for what it offers: `samples_weights`, `admits`, `components`, ..."""
    asks = re.compile(r"(isinstance|issubclass|type)\([^\n]*\bRank1\b")
    offenders = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if room(path) != "posteriors" and asks.search(path.read_text())
    ]
    assert offenders == []


def test_errors_say_what_an_argument_must_be_in_one_form():
    """ "`x` must be ..., not ...", and not a second form with "Received"."""
    assert [path.name for path in PACKAGE.rglob("*.py") if "Received" in path.read_text()] == []


def test_importing_bdl_loads_no_heavy_module_that_keras_does_not():
    code = "import sys, keras; before = set(sys.modules); import bdl; print('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = {name.split(".")[0] for name in done.stdout.split()}
    heavy = {
        "tensorflow_probability",
        "tf_keras",
        "matplotlib",
        "sklearn",
        "scipy",
        "rich",
        "typer",
        "tensorflow",
        "jax",
        "numpyro",
        "arviz_base",
        "xarray",
        "ray",
    }
    assert added & (heavy | {"torch", "pandas", "IPython"}) == set()
    assert "bdl" in added


NAMED_TUPLES_OWN = {"_fields", "_asdict", "_replace", "_make"}
"""Public by Python's documentation: their underscore keeps them apart from the names of fields."""


def reads_of_private_attributes(path):
    """Where a file reads or sets an attribute `_name` of an object that is not its own `self`, `cls` or `super()`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
            continue
        if node.attr in NAMED_TUPLES_OWN:
            continue
        is_super = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", None) == "super"
        if not is_super and getattr(node.value, "id", None) not in ("self", "cls"):
            yield f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {ast.unparse(node)}"


def test_no_file_reads_a_private_attribute_of_another_object():
    files = [path for path in PACKAGE.rglob("*.py") if room(path) != "keras_internals"]
    files += PACKAGE.with_name("bdl_cli").rglob("*.py")
    assert [read for path in files for read in reads_of_private_attributes(path)] == []
