"""Names are printed letter by letter, and messages speak of options."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from bdl.report import Row, Table
from bdl_cli.terminal import errors_as_messages, model_names, print_table, printable, say


def context(*parameters: tuple[str, list[str], str | None]) -> Any:
    params = [SimpleNamespace(name=name, opts=opts, metavar=metavar) for name, opts, metavar in parameters]
    return SimpleNamespace(command=SimpleNamespace(params=params))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain name äöü 模型", "plain name äöü 模型"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb\tc\x00", r"a\nb\tc\x00"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2028b", r"a\u2028b"),
        ("a\udcffb", r"a\udcffb"),
        ("1.2\u00a0to\u00a03", "1.2\u00a0to\u00a03"),
    ],
)
def test_control_characters_become_escapes(name: str, expected: str) -> None:
    assert printable(name) == expected


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", "[bold", ":smile:", "a$5_vs_$6", r"\[x]"])
def test_names_are_no_markup(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    say(f"Page: {name}")
    print_table(Table([name], [Row(name, [name])]), title=name)
    printed = capsys.readouterr().out
    assert printed.startswith(f"Page: {name}\n")
    assert printed.count(name) == 5


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_numbers_are_never_broken(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    models = ["network", "an ensemble of five networks", "forest", "a_name_without_a_space_that_is_longer_than_a_cell"]
    numbers = {
        f"{model} {score}": f"0.{len(model)}{score} (0.1\u00a0to\u00a00.9)" for model in models for score in "12"
    }
    rows = [Row(f"Debiased RMS error {score}", [numbers[f"{model} {score}"] for model in models]) for score in "12"]
    print_table(Table(models, rows), title="1,797 labels")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert [sum(number in line for line in lines) for number in numbers.values()] == [1] * 8
    models_beside = max(sum(number in line for number in numbers.values()) for line in lines)
    assert models_beside == {40: 1, 60: 1, 80: 2, 100: 3, 200: 4}[width]


def test_messages_name_options_for_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    parameters = context(
        ("files", ["files"], "FILE..."), ("num_bins", ["--num-bins"], None), ("out", ["-o", "--out"], None)
    )
    with pytest.raises(typer.Exit), errors_as_messages(parameters, {"y": "--labels"}):
        raise ValueError("`y`, `num_bins=3`, `out` and `files` must be `right=1`.")
    assert capsys.readouterr().err == "Error: `--labels`, `--num-bins`, `--out` and `FILE...` must be `right=1`.\n"


def test_other_errors_are_bugs_and_keep_their_traceback() -> None:
    with pytest.raises(TypeError), errors_as_messages(context()):
        raise TypeError


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/x.npz", "b.csv.gz"], ["x", "b"]),
        (["x.npz", "x.csv"], ["x.npz", "x.csv"]),
        (["a/x.npz", "b/x.npz"], ["a/x.npz", "b/x.npz"]),
        (["mean.npz"], ["mean.npz"]),
        ([".npz", "v1.2.npz"], [".npz", "v1.2"]),
        (["a\x1b.npz", r"a\x1b.npz"], [r"a\x1b.npz #1", r"a\x1b.npz #2"]),
    ],
)
def test_models_have_the_shortest_names_that_tell_them_apart(files: list[str], names: list[str]) -> None:
    found = model_names([Path(file) for file in files], {"mean"})
    assert list(found) == names
    assert list(found.values()) == [Path(file) for file in files]
