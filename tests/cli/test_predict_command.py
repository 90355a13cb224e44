"""`bdl predict`: what it writes is what `predict_distribution` gives, from every kind of file."""

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import bdl
from bdl_cli import app

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

X = np.random.default_rng(0).normal(size=(70, 3)).astype("float32")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, units in (("targets", 2), ("other", 2), ("classes", 3)):
        network = keras.Sequential([keras.Input((3,)), bdl.layers.DenseFlipout(units, seed=1)])
        network.save(folder / f"{name}.keras")
    likelihood = bdl.likelihoods.Normal(heteroscedastic=True)
    network = keras.saving.load_model(folder / "targets.keras")
    bdl.VariationalModel(network, likelihood, num_examples=70, kl_weight=1.0).save(folder / "variational.keras")
    inputs = [keras.Input((2,), name="size"), keras.Input((1,), name="age")]
    outputs = bdl.layers.DenseFlipout(2)(keras.layers.Concatenate()(inputs))
    keras.Model({"size": inputs[0], "age": inputs[1]}, outputs).save(folder / "named.keras")
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    frame = pandas.DataFrame(X, columns=list("abc"))
    frame.to_parquet("x.parquet", row_group_size=16)
    frame.assign(name="n").to_csv("x.csv", index=False)
    np.save("x.npy", X)
    np.savez("named.npz", size=X[:, :2], age=X[:, 2])
    return tmp_path


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})


def message(result: Any) -> str:
    return re.sub(r"[\s│]+", " ", result.stderr)


def expected(path: Path, x: Any = X, **settings: Any) -> Any:
    model = keras.saving.load_model(path)
    likelihood = bdl.likelihoods.Normal(heteroscedastic=True)
    return bdl.predict_distribution(model, x, likelihood, 8, 32, seed=3, summary=(0.05,), **settings)


@pytest.mark.parametrize("data", ["x.parquet", "x.csv", "x.npy"])
def test_the_rows_of_a_file_are_predicted_as_one_array(models: Path, data: str) -> None:
    path = models / "variational.keras"
    settings = ("--num-samples", 8, "--batch-size", 32, "--seed", 3, "--quantiles", 0.05)
    result = run(path, data, "-o", "out.parquet", *settings)
    assert result.exit_code == 0, result.stderr
    assert "70 rows written" in result.stdout
    assert "70/70" in result.stdout
    found, wanted = pandas.read_parquet("out.parquet"), expected(models / "targets.keras")
    for name in ("mean", "std", "aleatoric", "epistemic"):
        np.testing.assert_allclose(found[name], getattr(wanted, name), rtol=1e-6)
    np.testing.assert_allclose(found["quantile_0.05"], wanted.quantile(0.05), rtol=1e-6)


def test_an_ensemble_of_plain_models_and_the_columns_that_they_take(models: Path) -> None:
    first, second = models / "targets.keras", models / "other.keras"
    settings = ("--member", second, "--likelihood", "normal", "--num-samples", 8, "--batch-size", 32, "--seed", 3)
    result = run(first, "x.parquet", "-o", "out.npy", *settings, "--columns", "c", "--columns", "a", "--columns", "b")
    assert result.exit_code == 0, result.stderr
    ensemble = [keras.saving.load_model(path) for path in (first, second)]
    likelihood = bdl.likelihoods.Normal(heteroscedastic=True)
    wanted = bdl.predict_distribution(ensemble, X[:, [2, 0, 1]], likelihood, 8, 32, seed=3, summary=True)
    np.testing.assert_allclose(np.load("out.npy")["mean"], wanted.mean, rtol=1e-6)


def test_inputs_by_name_and_classes_by_name(models: Path) -> None:
    result = run(models / "named.keras", "named.npz", "-o", "out.npy", "--likelihood", "normal")
    assert result.exit_code == 0, result.stderr
    assert len(np.load("out.npy")) == 70
    names = ("--classes", "cat", "--classes", "dog", "--classes", "eel")
    result = run(models / "classes.keras", "x.npy", "-o", "classes.parquet", "--likelihood", "categorical", *names)
    assert result.exit_code == 0, result.stderr
    assert list(pandas.read_parquet("classes.parquet"))[:4] == ["class", "p_cat", "p_dog", "p_eel"]


@pytest.mark.parametrize(
    ("model", "rest", "told"),
    [
        ("targets", ["x.npy"], "`--likelihood` must be given, one of categorical, bernoulli, normal"),
        ("variational", ["x.npy", "--likelihood", "normal"], "`--likelihood` must be left out: .* has its own, Normal"),
        ("variational", ["x.parquet", "--columns", "a"], r"must have the 3 columns that the model takes, not 1: a\."),
        ("variational", ["x.parquet", "--columns", "q"], "x.parquet must have a column 'q'; it has a, b, c"),
        ("variational", ["none.npy"], "none.npy does not exist, or is no file"),
        ("variational", ["x.npy", "--quantiles", "2"], "`--quantiles` must hold levels between 0 and 1"),
        ("named", ["x.npy", "--likelihood", "normal"], "x.npy must have a column '(size|age)'; it has x"),
        ("named", ["named.npz", "--columns", "age"], "`--columns` are for a model of one input. This one has 2"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_the_output(models: Path, model: str, rest: list[str], told: str) -> None:
    Path("out.npy").write_text("kept")
    extra = [] if model == "variational" or "--likelihood" in rest or rest == ["x.npy"] else ["--likelihood", "normal"]
    result = run(models / f"{model}.keras", *rest, "-o", "out.npy", "--overwrite", *extra)
    assert result.exit_code != 0
    assert re.search(told, message(result)), message(result)
    assert Path("out.npy").read_text() == "kept"


def test_a_damaged_table_is_no_traceback(models: Path) -> None:
    Path("bad.parquet").write_bytes(b"PAR1 nothing PAR1")
    result = run(models / "variational.keras", "bad.parquet", "-o", "out.npy")
    assert result.exit_code == 1
    assert "bad.parquet cannot be read as .parquet" in message(result)
