"""The `bdl` command: what it prints and writes, and what it refuses before it costs any time."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import bdl
from bdl import cli, demo

ROOT = Path(bdl.__file__).parent.parent


def run(*arguments: str) -> Any:
    """The command in this process, in a terminal wide enough that no message is broken."""
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})


def message(result: Any) -> str:
    return re.sub(r"[\s│]+", " ", result.stderr)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the demo trained before it had checked its arguments")

    monkeypatch.setattr(demo, "run_demo", fail)


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"bdl {bdl.__version__}\n"


def test_help_lists_the_commands_and_options() -> None:
    assert "demo" in run("--help").stdout
    for option in ("--backend", "--seed", "--output", "--epochs"):
        assert option in run("demo", "--help").stdout


INSTEAD_OF_A_DEMO = """
import runpy
from bdl import demo

def run_demo(seed, epochs, on_epoch):
    import keras
    raise SystemExit(f"seed {seed}, {epochs} epochs on {keras.config.backend()}")

demo.run_demo = run_demo
runpy.run_module("bdl", run_name="__main__")
"""


def test_demo_runs_in_a_process_on_the_backend_of_the_option_with_all_options(output: Path) -> None:
    # Where a second backend is installed, the command has to start again to choose it.
    backend = "jax" if importlib.util.find_spec("jax") else "tensorflow"
    options = ["--backend", backend, "--seed", "3", "--epochs", "7", "--output", str(output)]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-c", INSTEAD_OF_A_DEMO, "demo", *options]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert result.stderr.strip().endswith(f"seed 3, 7 epochs on {backend}")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        # The words for the first three are typer's, and change with its version.
        ("--epochs", "0", "1"),
        ("--epochs", "many", "int"),
        ("--seed", "-1", "0"),
        ("--backend", "theano", "'theano' is not one of 'tensorflow', 'jax', 'torch'"),
        ("--output", "no/such/folder/page.html", "the folder no/such/folder does not exist"),
        ("--output", ".", ". is a folder. Give a file, such as bdl-demo.html"),
        ("--output", os.devnull, f"{os.devnull} is not a regular file"),
        ("--output", "x" * 300, "cannot write x"),
    ],
)
def test_a_bad_option_is_refused_with_its_reason(option: str, value: str, reason: str) -> None:
    result = run("demo", option, value)
    assert result.exit_code == 2
    assert reason in message(result)
    assert option in message(result)


@pytest.mark.usefixtures("no_training")
def test_a_folder_that_cannot_be_written_is_refused(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cli.tempfile, "TemporaryFile", refuse)
    result = run("demo", "--output", str(output))
    assert result.exit_code == 2
    assert f"cannot write {output}: Permission denied." in message(result)


def test_an_existing_page_survives_a_failing_run(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of luck")

    output.write_text("old")
    monkeypatch.setattr(demo, "run_demo", fail)
    result = run("demo", "--output", str(output))
    assert result.exit_code == 1
    assert output.read_text() == "old"
    assert list(output.parent.iterdir()) == [output]


def test_another_backend_runs_the_same_command_again(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(cli.os, "execve", lambda *arguments: calls.append(arguments))
    other = next(backend for backend in cli.Backend if backend != keras.config.backend())
    cli._use_backend(other)
    ((program, arguments, environment),) = calls
    assert program == sys.executable
    assert arguments == sys.orig_argv
    assert environment["KERAS_BACKEND"] == other


def test_the_backend_that_is_loaded_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(cli.os, "execve", lambda *arguments: calls.append(arguments))
    cli._use_backend(cli.Backend(keras.config.backend()))
    cli._use_backend(None)
    assert not calls


def test_a_backend_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None)
    other = next(backend for backend in cli.Backend if backend != keras.config.backend())
    result = run("demo", "--backend", other)
    assert result.exit_code == 2
    assert f"{other} is not installed. Install it with: pip install 'bdl[{other}]'" in message(result)


def test_a_backend_that_bdl_does_not_support_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "numpy")
    result = run("demo")
    assert result.exit_code == 2
    assert "Keras is configured for 'numpy', on which bdl does not run" in message(result)


# bdl evaluate


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(3), size=60)
    path = tmp_path / "network.npz"
    np.savez(path, probabilities=p, y=[random.choice(3, p=row) for row in p])
    return path


def test_evaluate_prints_the_table_and_writes_page_and_json(predictions: Path, output: Path) -> None:
    result = run("evaluate", str(predictions), "--labels", "y", "--output", str(output), "--num-resamples", "20")
    assert result.exit_code == 0, result.stderr
    assert "network" in result.stdout
    assert "NLL [nats]" in result.stdout
    figures = json.loads(output.with_suffix(".json").read_text())
    with np.load(predictions) as file:
        expected = bdl.calibration.negative_log_likelihood(file["y"], file["probabilities"])
    assert figures["models"]["network"]["scores"]["nll"]["value"] == expected
    assert "Reliability diagram" in output.read_text()


def test_evaluate_takes_several_outputs_and_void_labels(tmp_path: Path) -> None:
    path, figures = tmp_path / "network.npz", tmp_path / "figures.json"
    p, kind = np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]]), np.array([0, 1, 255])
    of_size = {"size/mean": np.zeros(3), "size/scale": np.ones(3), "size/y": np.ones(3)}
    np.savez(path, **{"kind/probabilities": p, "kind/y": kind}, **of_size)
    arguments = ["--labels", "y", "--num-resamples", "0", "--json", str(figures)]
    result = run("evaluate", str(path), *arguments)
    assert result.exit_code == 1
    assert "Output 'kind': `y` must hold class indices" in message(result)
    result = run("evaluate", str(path), *arguments, "--ignore-class", "255")
    assert result.exit_code == 0, result.stderr
    found = json.loads(figures.read_text())["outputs"]["kind"]["models"]["network"]["scores"]["nll"]["value"]
    assert found == pytest.approx(-np.mean(np.log([0.7, 0.8])))


def test_evaluate_compares_files_of_the_same_name(predictions: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "network.npz"
    other.parent.mkdir()
    other.write_bytes(predictions.read_bytes())
    figures = tmp_path / "figures.json"
    result = run(
        "evaluate", str(predictions), str(other), "--labels", "y", "--num-resamples", "0", "--json", str(figures)
    )
    assert result.exit_code == 0, result.stderr
    assert list(json.loads(figures.read_text())["models"]) == [str(predictions), str(other)]


def test_evaluate_leaves_nothing_half_written_of_a_damaged_file(predictions: Path, output: Path) -> None:
    output.write_text("old")
    predictions.write_bytes(predictions.read_bytes()[:200])
    result = run("evaluate", str(predictions), "--labels", "y", "--output", str(output))
    assert result.exit_code == 1
    assert "cannot be read as .npz" in message(result)
    assert output.read_text() == "old"
    assert sorted(path.name for path in output.parent.iterdir()) == ["network.npz", "page.html"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--labels", "missing"], "`--labels` must name an array in"),
        (["--labels", "y", "--output", "network.npz"], "network.npz is an input. Give another file."),
        (["--labels", "y", "--output", "no/page.html"], "the folder no does not exist"),
        (["--labels", "y", "--level", "2"], "`level` must be between 0 and 1"),
        (["network.npz", "--labels", "y"], "must be different files"),
    ],
)
def test_evaluate_refuses_with_the_cure(
    predictions: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(predictions.parent)
    result = run("evaluate", "network.npz", *arguments)
    assert result.exit_code != 0
    assert expected in message(result)
    assert "Traceback" not in message(result)


def test_diagnose_reads_records_and_compares_them(tmp_path: Path, output: Path) -> None:
    from bdl.diagnostics.record import append

    for name, temperature in (("good", 1.0), ("bad", 1000.0)):
        path = tmp_path / f"{name}.jsonl"
        append(path, {"event": "start", "format": 1, "run": name, "planned_epochs": 2, "num_examples": 10})
        append(path, {"event": "epoch", "run": name, "epoch": 1, "logs": {"loss": 1.0, "nll": 0.9, "kl": 1.0}})
        quantities = {"temperature": temperature, "num_examples": 10}
        append(path, {"event": "probe", "run": name, "epoch": 1, "quantities": quantities, "verdict": "inconclusive"})
    result = run("diagnose", str(tmp_path / "bad.jsonl"))
    assert result.exit_code == 0
    assert "bad: mis_scaled_kl (certain)" in result.stdout
    result = run("diagnose", str(tmp_path / "good.jsonl"), str(tmp_path / "bad.jsonl"), "-o", str(output))
    assert result.exit_code == 0
    assert "Side by side" in output.read_text()
    figures = tmp_path / "figures.json"
    assert run("diagnose", str(tmp_path / "bad.jsonl"), "--json", str(figures)).exit_code == 0
    assert json.loads(figures.read_text())["bad"]["verdict"] == "mis_scaled_kl"


def test_diagnose_refuses_what_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    result = run("diagnose", str(path))
    assert result.exit_code == 1
    assert "is empty" in message(result)
    assert run("diagnose", str(path), "-o", str(path)).exit_code == 2
