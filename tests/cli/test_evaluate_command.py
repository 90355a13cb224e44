"""`bdl evaluate`: what it prints and writes, and that no file makes it fail without a message."""

import hashlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import bdl
from bdl_cli import app

RANDOM = np.random.default_rng(0)
P = RANDOM.dirichlet(np.ones(3), size=60)
Y = np.array([RANDOM.choice(3, p=row) for row in P])
NLL = -np.mean(np.log(P[np.arange(60), Y]))


def run(*arguments: str) -> Any:
    """The command in this process, in a terminal wide enough that no message is broken."""
    return CliRunner().invoke(app, ["evaluate", *arguments], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})


def message(result: Any) -> str:
    return re.sub(r"[\s│]+", " ", result.stderr)


def scores(path: str | Path = "figures.json") -> dict[str, float]:
    models = json.loads(Path(path).read_text())["models"]
    return {name: model["scores"]["nll"]["value"] for name, model in models.items()}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("network.npz", probabilities=P, y=Y)
    return tmp_path


QUICK = ("--labels", "y", "--num-resamples", "0", "--json", "figures.json")


def test_the_table_is_printed_and_page_and_json_are_written() -> None:
    result = run("network.npz", "--labels", "y", "--output", "page.html", "--num-resamples", "20")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("network: labels from y; probabilities\n")
    assert "NLL [nats]" in result.stdout
    assert scores("page.json")["network"] == bdl.calibration.negative_log_likelihood(Y, P)
    assert "Reliability diagram" in Path("page.html").read_text()


def test_several_outputs_and_void_labels() -> None:
    p, kind = np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]]), np.array([0, 1, 255])
    of_size = {"size/mean": np.zeros(3), "size/scale": np.ones(3), "size/y": np.ones(3)}
    np.savez("kind.npz", **{"kind/probabilities": p, "kind/y": kind}, **of_size)
    result = run("kind.npz", *QUICK)
    assert result.exit_code == 1
    assert "Output 'kind': `--labels` must hold class indices" in message(result)
    result = run("kind.npz", *QUICK, "--ignore-class", "255")
    assert result.exit_code == 0, result.stderr
    found = json.loads(Path("figures.json").read_text())["outputs"]["kind"]["models"]
    assert found["kind.npz"]["scores"]["nll"]["value"] == pytest.approx(-np.mean(np.log([0.7, 0.8])))


@pytest.mark.parametrize("name", ["probabilities", "samples", "mean"])
def test_a_file_may_be_called_as_its_arrays_are(name: str) -> None:
    Path("network.npz").rename(f"{name}.npz")
    assert run(f"{name}.npz", *QUICK).exit_code == 0
    assert scores() == {f"{name}.npz": pytest.approx(NLL)}


def test_files_of_the_same_name_are_told_apart_by_folder() -> None:
    Path("other").mkdir()
    Path("other/network.npz").write_bytes(Path("network.npz").read_bytes())
    assert run("network.npz", "other/network.npz", *QUICK).exit_code == 0
    assert list(scores()) == ["network.npz", "other/network.npz"]


def test_each_file_is_scored_on_labels_of_its_own_rows() -> None:
    """Not b's rows on a's labels, nor on labels that b lacks."""
    for name, order in (("a", slice(None)), ("same", slice(None)), ("b", slice(None, None, -1))):
        pd.DataFrame({"y": Y, "p0": P[:, 0], "p1": P[:, 1], "p2": P[:, 2]})[order].to_csv(f"{name}.csv", index=False)
    pd.DataFrame(P).add_prefix("p").to_csv("without.csv", index=False)
    result = run("a.csv", "b.csv", *QUICK)
    assert result.exit_code == 1
    assert "`--labels` must be the same in a.csv and b.csv" in message(result)
    result = run("a.csv", "without.csv", *QUICK)
    assert result.exit_code == 1
    assert "without.csv has no 'y'" in message(result)
    assert not Path("figures.json").exists()
    assert run("a.csv", "same.csv", *QUICK).exit_code == 0
    assert scores() == {"a": pytest.approx(NLL), "same": pytest.approx(NLL)}


def test_it_says_which_columns_were_taken_as_what() -> None:
    frame = pd.DataFrame({"y": Y, "fold": 1, "name": "x", "p1": P[:, 1], "p0": P[:, 0], "p2": P[:, 2]})
    frame.to_csv("a.csv")
    result = run("a.csv", *QUICK)
    assert result.stdout.splitlines()[0] == (
        "a: labels from y; probabilities from p0, p1, p2; left out: a column without a name (numbers the rows), "
        "fold (constant), name (text)"
    )
    assert scores()["a"] == pytest.approx(NLL)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--labels", "missing"], "`--labels` must name an array in"),
        (["--labels", "y", "--output", "network.npz"], "network.npz is an input. Give another file."),
        (["--labels", "labels.npy", "--json", "labels.npy"], "labels.npy is an input. Give another file."),
        (["--labels", "labels.npy", "--json", "labels.npy", "--overwrite"], "labels.npy is an input"),
        (["--labels", "y", "--output", "r.json"], "r.json is written already, by --output"),
        (["--labels", "y", "--output", "."], ". is a folder. Give a file"),
        (["--labels", "y", "--output", "four.html"], "four.json exists. Choose another name"),
        (["--labels", "y", "--output", "no/page.html"], "the folder no does not exist"),
        (["--labels", "y", "--level", "2"], "`--level` must be between 0 and 1"),
        (["--labels", "y", "--columns", "q*"], "`--columns` must name columns of network.npz"),
        (["network.npz", "--labels", "y"], "FILE... must be different files"),
        (["missing.npz", "--labels", "y"], "missing.npz does not exist"),
        (["x" * 300, "--labels", "y"], "does not exist"),
        (["--labels", "x" * 300], "`--labels` must name an array in"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_cure(folder: Path, arguments: list[str], expected: str) -> None:
    np.save("labels.npy", Y)
    Path("four.json").write_text("precious")
    before = digests(folder)
    result = run("network.npz", *arguments)
    assert result.exit_code in (1, 2)
    assert expected in message(result)
    assert digests(folder) == before


@pytest.mark.parametrize("name", ["cost_$5_vs_$6", "[red]x", "[x", "_hidden", "a\x1b[31m", "<script>", r"$\frac{$"])
def test_names_are_never_markup(name: str) -> None:
    Path("network.npz").rename(f"{name}.npz")
    result = run(f"{name}.npz", *QUICK)
    assert result.exit_code == 0, result.stderr
    shown = name.replace("\x1b", r"\x1b")
    assert f"{shown}: labels from y; probabilities" in result.stdout
    assert "\x1b" not in result.stdout
    assert list(scores()) == [shown]


@pytest.mark.parametrize("name", ["[red]x", "a\x1b[31m", "<script>", "cost_$5_vs_$6", "_hidden", r"$\frac{$"])
def test_names_are_never_markup_on_a_page(name: str) -> None:
    Path("network.npz").rename(f"{name}.npz")
    result = run(f"{name}.npz", "--labels", "y", "--num-resamples", "0", "-o", "page.html")
    assert result.exit_code == 0, result.stderr
    page = Path("page.html").read_text()
    assert "<script" not in page
    assert "\x1b" not in page


def test_the_extra_is_named_where_pandas_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    Path("a.csv").write_text("y,p\n1,0.5\n")
    assert "pip install 'keras-bdl[tables]'" in message(run("a.csv", *QUICK))
    assert run("network.npz", *QUICK).exit_code == 0


# Damaged files


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def written(save: Any) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


FRAME = pd.DataFrame({"y": Y, "p0": P[:, 0], "p1": P[:, 1], "p2": P[:, 2]})
WHOLE = {
    "a.npz": written(lambda file: np.savez(file, probabilities=P, y=Y)),
    "b.npz": written(lambda file: np.savez_compressed(file, mean=Y, scale=np.ones(60), y=Y * 1.0)),
    "a.npy": written(lambda file: np.save(file, P)),
    "a.csv": FRAME.to_csv(index=False).encode(),
    "a.tsv.gz": written(lambda file: FRAME.to_csv(file, sep="\t", compression="gzip")),
    "a.parquet": written(FRAME.to_parquet),
    "b.parquet": written(pd.DataFrame({"y": Y, "probabilities": P.tolist()}).to_parquet),
}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file that was cut, or in which bytes were changed, added, lost or repeated."""
    name = draw(st.sampled_from(sorted(WHOLE)))
    data = bytearray(WHOLE[name])
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(1, 60))
        match draw(st.sampled_from(["cut", "change", "add", "lose", "repeat"])):
            case "cut":
                del data[start:]
            case "change":
                data[start : start + 1] = draw(st.binary(min_size=1, max_size=1))
            case "add":
                data[start:start] = draw(st.binary(max_size=40))
            case "lose":
                del data[start : start + length]
            case "repeat":
                data[start:start] = data[start : start + length] * 3
    return name, bytes(data)


@fuzzed
@given(damaged())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_damaged_file_is_evaluated_or_refused(folder: Path, file: tuple[str, bytes]) -> None:
    name, data = file
    Path(name).write_bytes(data)
    np.save("labels.npy", Y)
    Path("figures.json").unlink(missing_ok=True)
    before = digests(folder)
    labels = "labels.npy" if name.endswith(".npy") else "y"
    result = run(name, "--labels", labels, "--num-resamples", "0", "--json", "figures.json")
    assert result.exit_code in (0, 1), result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stderr
    if result.exit_code == 0:
        figures = json.loads(Path("figures.json").read_text(), parse_constant=pytest.fail)
        assert figures["num_events"] > 0
        Path("figures.json").unlink()
    else:
        result = run("network.npz", name, "--labels", labels, "--num-resamples", "0")
        assert result.exit_code == 1
        assert re.search(rf"{re.escape(name)}|Model '{name.split('.')[0]}'", message(result)), result.stderr
    assert digests(folder) == before


# Which class is which


NAMES = np.array(["emu", "cat", "dog"])


@pytest.mark.parametrize("labels", [NAMES, np.array([3, 1, 2]), np.array([-1, 0, 1])], ids=["text", "1 to 3", "signs"])
@pytest.mark.parametrize("prefix", ["", "p_", "P of "])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_named_after_the_classes_are_these(labels: Any, prefix: str, suffix: str) -> None:
    table = pd.DataFrame(P, columns=[f"{prefix}{label}" for label in labels]).assign(y=labels[Y])
    table = table[RANDOM.permutation(table.columns)]
    for part in (slice(None), Y != 0):  # a class may be absent
        getattr(table[part], f"to_{suffix}")(f"table.{suffix}", index=False)
        result = run(f"table.{suffix}", *QUICK, "--overwrite")
        assert result.exit_code == 0, result.stderr
        assert scores()["table"] == pytest.approx(-np.mean(np.log(P[np.arange(60), Y][part])))


def test_classes_of_columns_without_their_names_are_asked_for() -> None:
    pd.DataFrame(P, columns=["a", "b", "c"]).assign(y=NAMES[Y]).to_csv("table.csv", index=False)
    result = run("table.csv", *QUICK)
    assert result.exit_code == 1
    assert re.search(
        r"`--labels` must hold the classes \['a', 'b', 'c'\], not '\w+'. .* by `--classes`", message(result)
    )
    given = [word for name in NAMES for word in ("--classes", name)]
    result = run("table.csv", *QUICK, *given)
    assert result.exit_code == 0, result.stderr
    assert scores()["table"] == pytest.approx(NLL)
    np.savez("named.npz", probabilities=P, y=np.where(Y == 0, "void", NAMES[Y]), classes=NAMES)
    result = run("named.npz", *QUICK, "--overwrite", "--ignore-class", "void")
    assert result.exit_code == 0, result.stderr
    assert scores()["named"] == pytest.approx(-np.mean(np.log(P[np.arange(60), Y][Y != 0])))


def test_logits_of_one_column_and_of_several_labels() -> None:
    z, y = RANDOM.normal(size=(60, 3)), RANDOM.integers(0, 2, (60, 3))
    expected = np.mean(np.logaddexp(0, np.where(y == 1, -z, z)), axis=0)
    np.savez("one.npz", logits=z[:, :1], y=y[:, 0])
    np.savez("several.npz", logits=z, y=y)
    for name, value in (("one", expected[0]), ("several", expected.mean())):
        result = run(f"{name}.npz", *QUICK, "--overwrite")
        assert result.exit_code == 0, result.stderr
        assert scores()[name] == pytest.approx(value)
