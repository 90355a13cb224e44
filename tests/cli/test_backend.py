"""The command starts without a backend, loads the one that is asked for, and keeps TensorFlow's log to itself."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import bdl
from bdl_cli import app, backend
from bdl_cli.backend import Backend, load_backend

ROOT = Path(bdl.__file__).parent.parent
LEVEL = "TF_CPP_MIN_LOG_LEVEL"

OTHER = next(each for each in Backend if each != keras.config.backend())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout == f"bdl {bdl.__version__}\n"


def test_the_older_name_of_the_command_is_the_same() -> None:
    from bdl import cli

    assert cli.app is app


def test_help_lists_commands_and_options_without_loading_the_library() -> None:
    code = """
import sys
from typer.testing import CliRunner
from bdl_cli import app
print(CliRunner().invoke(app, ["--help"]).stdout)
print(CliRunner().invoke(app, ["demo", "--help"]).stdout)
heavy = {"bdl", "keras", "tensorflow", "jax", "torch", "numpy", "scipy", "matplotlib", "sklearn", "pandas"}
print("loaded:", sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    for word in ("demo", "convert", "evaluate", "diagnose", "--backend", "--seed", "--output", "--epochs", "--verbose"):
        assert word in done.stdout
    assert done.stdout.endswith("loaded: []\n")


@pytest.mark.tensorflow
@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="what TensorFlow logs")
def test_nothing_but_the_output_is_printed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", probabilities=np.array([[0.9, 0.1], [0.2, 0.8]]), y=[0, 1])
    command = [sys.executable, "-m", "bdl_cli", "evaluate", "a.npz", "--labels", "y", "--num-resamples", "0"]
    quiet = {name: value for name, value in os.environ.items() if name != LEVEL}
    settings: Any = {"cwd": tmp_path, "env": {**quiet, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run(command, check=True, **settings)
    assert done.stderr == ""
    assert done.stdout.startswith("a: labels from y; probabilities\n")


@pytest.mark.parametrize(
    ("given", "verbose", "expected"), [(None, False, "3"), ("1", False, "1"), (None, True, "0"), ("3", True, "0")]
)
def test_native_logs_are_silent_unless_asked_for(given: str | None, verbose: bool, expected: str) -> None:
    os.environ.pop(LEVEL, None)
    if given is not None:
        os.environ[LEVEL] = given
    load_backend(verbose=verbose)
    assert os.environ[LEVEL] == expected


IMPORTING = """
import os
from bdl_cli.backend import _without_remarks
with _without_remarks():
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n")
    os.write(2, b"I0000 00:00:1795949909.223997 18896 port.cc:153] oneDNN custom operations are on.\\n")
    os.write(2, b"2026-11-29 10:00:00.000000: I tensorflow/core/platform/cpu_feature_guard.cc:210] oneDNN\\n")
    os.write(2, b"E0000 00:00:1795949909.223997 18896 a.cc:1] an error\\n")
    os.write(2, b"F0000 00:00:1795949909.223997 18896 a.cc:1] the last")
    {end}
print("after", file=__import__("sys").stderr)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="TensorFlow is imported as it is where processes cannot fork")
@pytest.mark.parametrize(
    ("end", "last"), [("pass", "after\n"), ("os.abort()", ""), ("raise OSError('no')", "OSError: no")]
)
def test_errors_of_native_code_are_shown_even_if_it_ends_the_process(end: str, last: str) -> None:
    code = IMPORTING.format(end=end)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    error, fatal, *_ = done.stderr.splitlines()
    assert error.endswith("an error")
    assert fatal.startswith("F0000")
    assert (done.returncode == 0) == (end == "pass")
    assert last in done.stderr


def test_keras_is_loaded_on_the_backend_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keras.py").write_text("import os\nclass config:\n    backend = lambda: os.environ['KERAS_BACKEND']\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    load_backend(OTHER)
    assert os.environ["KERAS_BACKEND"] == OTHER


def test_another_backend_than_the_loaded_one_runs_the_same_command_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    load_backend(OTHER)
    ((program, arguments, environment),) = calls
    assert program == sys.executable
    assert arguments == sys.orig_argv
    assert environment["KERAS_BACKEND"] == OTHER


def test_the_backend_that_is_loaded_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    load_backend(Backend(keras.config.backend()))
    load_backend(None)
    assert not calls


def test_a_backend_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        typer.BadParameter, match=rf"{OTHER} is not installed. Install it with: pip install 'keras-bdl\["
    ):
        load_backend(OTHER)


def test_a_backend_that_bdl_does_not_support_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "numpy")
    with pytest.raises(typer.BadParameter, match="Keras is configured for 'numpy', on which bdl does not run"):
        load_backend()


def test_a_backend_that_cannot_be_loaded_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(typer.BadParameter, match="Keras cannot be loaded"):
        load_backend()


INSTEAD_OF_A_DEMO = """
import runpy
from bdl import demo

def run_demo(seed, epochs, on_epoch):
    import keras
    raise SystemExit(f"seed {seed}, {epochs} epochs on {keras.config.backend()}")

demo.run_demo = run_demo
runpy.run_module("bdl", run_name="__main__")
"""


def test_demo_runs_on_the_backend_of_the_option_with_all_options(tmp_path: Path) -> None:
    # Where a second backend is installed, the command has to start again to choose it.
    backend = "jax" if importlib.util.find_spec("jax") else "tensorflow"
    options = ["--backend", backend, "--seed", "3", "--epochs", "7", "--output", str(tmp_path / "page.html")]
    command = [sys.executable, "-c", INSTEAD_OF_A_DEMO, "demo", *options]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert result.stderr.strip().endswith(f"seed 3, 7 epochs on {backend}")
