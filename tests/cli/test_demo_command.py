"""`bdl demo` refuses what it could not do before it costs any time; tests/test_demo.py has what it computes."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bdl import demo
from bdl_cli import app


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["demo", *arguments], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})


def message(result: Any) -> str:
    return re.sub(r"[\s│]+", " ", result.stderr)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the demo trained before it had checked its arguments")

    monkeypatch.setattr(demo, "run_demo", fail)


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
        ("--output", ".", ". is a folder. Give a file, such as report.html"),
        ("--output", os.devnull, f"{os.devnull} is not a regular file"),
    ],
)
def test_a_bad_option_is_refused_with_its_reason(option: str, value: str, reason: str) -> None:
    result = run(option, value)
    assert result.exit_code == 2
    assert reason in message(result)
    assert option in message(result)


@pytest.mark.usefixtures("no_training")
def test_an_existing_page_is_replaced_only_if_asked(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    result = run("--output", str(page))
    assert result.exit_code == 2
    assert "exists. Choose another name, or allow it to be replaced with --overwrite." in message(result)
    assert page.read_text() == "old"


def test_an_existing_page_survives_a_failing_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of luck")

    page = tmp_path / "page.html"
    page.write_text("old")
    monkeypatch.setattr(demo, "run_demo", fail)
    result = run("--output", str(page), "--overwrite")
    assert result.exit_code == 1
    assert page.read_text() == "old"
    assert list(tmp_path.iterdir()) == [page]
