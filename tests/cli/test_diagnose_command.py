"""`bdl diagnose`: records are read, compared and, where they are damaged, refused by line and place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bdl import diagnostics
from bdl_cli import app

START = {"event": "start", "format": 1, "run": "a", "model": "m", "num_examples": 100, "planned_epochs": 9}
FIT = {"num_examples": 50, "nll_null": 1.0, "nll_gibbs": 0.5, "nll_bma": 0.4, "gain": 0.6}
LAYER = {"name": "dense", "kl": 3.0, "num_weights": 10}
QUANTITIES = {"epoch": 3, "num_examples": 100, "finite": True, "kl": 3.0, "temperature": 1.0, "train": FIT}
PROBE = {
    "event": "probe",
    "run": "a",
    "epoch": 3,
    "quantities": {**QUANTITIES, "layers": [LAYER], "pruned_accuracy": {"75%": 0.5}},
    "verdict": "healthy",
    "confidence": "certain",
    "evidence": ["x"],
}
END = {"event": "end", "run": "a", "epoch": 6}


def epoch(number: int) -> dict[str, Any]:
    logs = {"loss": 1 / number, "nll": 1 / number, "kl": 3.0, "elbo": -1 / number, "temperature": 1.0, "val_nll": 0.5}
    return {"event": "epoch", "run": "a", "epoch": number, "logs": logs}


RECORD = [START, *map(epoch, range(1, 7)), PROBE, END]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["diagnose", *arguments], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})


def message(result: Any) -> str:
    return re.sub(r"[\s│]+", " ", result.stderr)


def write(name: str, *lines: Any) -> None:
    Path(name).write_text("".join(line + "\n" if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_records_are_read_and_compared() -> None:
    write("good.jsonl", *RECORD)
    bad = {**PROBE, "quantities": {"temperature": 1000.0, "num_examples": 10}}
    write("bad.jsonl", START, epoch(1), bad)
    result = run("bad.jsonl", "--json", "figures.json")
    assert result.exit_code == 0
    assert result.stdout.startswith("bad: mis_scaled_kl (certain)")
    assert json.loads(Path("figures.json").read_text())["bad"]["verdict"] == "mis_scaled_kl"
    result = run("good.jsonl", "bad.jsonl", "-o", "page.html")
    assert result.exit_code == 0, result.stderr
    assert "Side by side" in Path("page.html").read_text()


def test_a_page_is_built_only_if_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("a page was built")

    monkeypatch.setattr(diagnostics, "comparison", fail)
    monkeypatch.setattr(diagnostics.HealthReport, "page", fail)
    write("many.jsonl", *({**line, "run": str(number)} for number in range(50) for line in (START, epoch(1))))
    result = run("many.jsonl", "--json", "figures.json")
    assert result.exit_code == 0, result.exception
    assert list(json.loads(Path("figures.json").read_text())) == [f"many #{number}" for number in range(1, 51)]


def test_runs_of_different_files_have_different_names() -> None:
    Path("other").mkdir()
    for name in ("run.jsonl", "other/run.jsonl"):
        write(name, *RECORD, {**START, "run": "b"})
    assert run("run.jsonl", "other/run.jsonl", "--json", "figures.json").exit_code == 0
    names = list(json.loads(Path("figures.json").read_text()))
    assert names == ["run.jsonl #1", "run.jsonl #2", "other/run.jsonl #1", "other/run.jsonl #2"]


def test_files_are_checked_before_anything_is_read() -> None:
    write("run.jsonl", *RECORD)
    Path("old.json").write_text("old")
    Path("circle.html").symlink_to("circle.html")
    for arguments, expected in (
        (["-o", "run.jsonl"], "run.jsonl is an input"),
        (["--json", "old.json"], "old.json exists"),
        (["-o", "circle.html"], "cannot write circle.html"),
        (["-o", "r", "--json", "r"], "r is written already, by --output"),
        (["run.jsonl"], "RECORD... must be different files"),
    ):
        result = run("run.jsonl", *arguments)
        assert result.exit_code == 2
        assert expected in message(result)
    assert Path("old.json").read_text() == "old"
    assert run("run.jsonl", "--json", "old.json", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([""], "is empty"),
        (["[" * 10**6 + "]" * 10**6], "line 1 is not JSON"),
        ([START, {**epoch(1), "logs": None}], "line 2: `logs` must be a mapping, not None."),
        ([START, {**epoch(1), "logs": {"loss": "x"}}], "line 2: `logs.loss` must be a number, not 'x'."),
        ([START, {**epoch(1), "epoch": None}], "line 2: `epoch` must be a count, not None."),
        ([START, {"event": "epoch"}], "line 2: `epoch` must be given, not be missing."),
        (
            [START, epoch(1), {**PROBE, "quantities": {"layers": [1]}}],
            "`quantities.layers[0]` must be a mapping, not 1",
        ),
        ([START, {**PROBE, "quantities": {"train": {}}}], "`quantities.train.num_examples` must be given"),
        ([{**START, "format": "x"}], "line 1: `format` must be a count, not 'x'."),
        ([{**START, "num_examples": -1}], "line 1: `num_examples` must be a count, not -1."),
        ([[1]], "line 1 is no event of a run"),
        ([PROBE, START], "line 1 is no event of a run"),
    ],
)
def test_what_is_damaged_is_named(lines: list[Any], expected: str) -> None:
    write("run.jsonl", *lines)
    result = run("run.jsonl", "--json", "figures.json")
    assert result.exit_code == 1, result.exception
    assert expected in message(result)
    assert not Path("figures.json").exists()


@pytest.mark.parametrize(
    "line",
    [
        '{"a":' * 10**5 + "1" + "}" * 10**5,
        '{"event": "epoch", "epoch": ' + "9" * 5000 + "}",
        '{"event": "epoch", "run": "a", "epoch": 7, "lo',
    ],
    ids=["braces", "digits", "cut"],
)
def test_a_line_that_cannot_be_parsed_is_passed_over_and_said(line: str) -> None:
    write("run.jsonl", START, epoch(1), line, epoch(2))
    result = run("run.jsonl")
    assert result.exit_code == 0, result.exception
    assert "cut in the middle of a line" in result.stdout
    assert "stops after epoch 2" in result.stdout


def test_numbers_without_end_are_a_run_that_diverged() -> None:
    for number in ("NaN", "Infinity", "1e400", "-1e308"):
        line = f'{{"event": "epoch", "epoch": 1, "run": "a", "logs": {{"loss": {number}, "nll": {number}}}}}'
        write("run.jsonl", START, line)
        result = run("run.jsonl", "--json", "figures.json", "-o", "page.html", "--overwrite")
        assert result.exit_code == 0, result.exception
        figures = json.loads(Path("figures.json").read_text(), parse_constant=pytest.fail)
        assert figures["run"]["verdict"] == "diverged"


def test_names_in_a_record_steer_nothing() -> None:
    layers = [{**LAYER, "name": name} for name in ("<script>alert(1)</script>", "\ud800", "$x$", "a\x1b[31m")]
    write("run.jsonl", {**START, "model": "a\u2028b"}, epoch(1), {**PROBE, "quantities": {"layers": layers}})
    result = run("run.jsonl", "-o", "page.html", "--json", "figures.json")
    assert result.exit_code == 0, result.exception
    assert "<script" not in Path("page.html").read_text()
    assert "\x1b" not in result.stdout


# Fuzzing

VALUES: list[Any] = [None, "x", "", -1, 0, 1e308, -1e308, 10**30, True, [], {}, [1], {"a": 1}, 1.5, "1", "\ud800"]
VALUES += [float("nan"), float("inf"), "<script>"]


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [deeper for key, inner in items for deeper in ((*place, key), *places(inner, (*place, key)))]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A record with values of other kinds, keys that are missing, or bytes that are gone."""
    lines = json.loads(json.dumps(RECORD))
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from([place for place in places(lines) if len(place) > 1]))
        holder = lines
        for step in path:
            holder = holder[step]
        if isinstance(holder, dict) and draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = draw(st.sampled_from(VALUES))
    text = "\n".join(map(json.dumps, lines))
    start = draw(st.integers(0, len(text)))
    length = draw(st.sampled_from([0, 0, 0, 1, 30]))
    return text[:start] + text[start + length :]


@fuzzed
@given(damaged())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_damaged_record_is_diagnosed_or_refused(folder: Path, text: str) -> None:
    Path("run.jsonl").write_text(text)
    result = run("run.jsonl", "--json", "figures.json", "--overwrite")
    assert result.exit_code in (0, 1), result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    if result.exit_code == 0:
        json.loads(Path("figures.json").read_text(), parse_constant=pytest.fail)
    assert Path("run.jsonl").read_text() == text
