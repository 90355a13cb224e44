"""`bdl convert`: the file is converted, and whatever was there before stays whole."""

import hashlib
from pathlib import Path
from typing import Any

import keras
import pytest
from networks import made, outputs
from numpy.testing import assert_allclose
from typer.testing import CliRunner

import bdl
from bdl_cli import app


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"})


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, _ = made("images")
    model.save(tmp_path / "model.keras")
    return tmp_path / "model.keras"


@pytest.mark.parametrize("to", ["mc-dropout", "variational"])
def test_the_converted_model_is_the_original_without_noise(saved: Path, to: str):
    before = digest(saved)
    target = saved.with_name("out.keras")
    result = run(saved, "--to", to, "-o", target)
    assert result.exit_code == 0, result.output
    assert "Model:" in result.stdout
    assert digest(saved) == before
    model, x = made("images")
    converted = keras.saving.load_model(target)
    with bdl.mean_weights(converted):
        assert_allclose(outputs(converted, x), outputs(model, x), rtol=1e-5, atol=1e-6)
    back = saved.with_name("plain.keras")
    assert run(target, "--to", "deterministic", "-o", back).exit_code == 0
    assert_allclose(outputs(keras.saving.load_model(back), x), outputs(model, x), rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model.keras", "out.keras", "plain.keras"]


def test_a_converted_file_is_not_converted_again(saved: Path):
    once, twice = saved.with_name("once.keras"), saved.with_name("twice.keras")
    assert run(saved, "--to", "variational", "-o", once).exit_code == 0
    result = run(once, "--to", "variational", "-o", twice)
    assert result.exit_code == 1
    assert "have a posterior already" in result.stderr
    assert not twice.exists()


def test_variational_says_what_became_of_each_layer(saved: Path):
    result = run(saved, "--to", "variational", "-o", saved.with_name("out.keras"), "--layers", "last")
    assert result.stdout.count("as it was") == 3
    assert result.stdout.count("reparameterization of kernel") == 1


def test_decoration_is_said(saved: Path):
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    plain.save(saved)
    result = run(saved, "--to", "mc-dropout", "-o", saved.with_name("out.keras"))
    assert result.exit_code == 0
    assert "no dropout" in result.stderr


def test_nothing_is_overwritten_unless_asked_and_the_model_never(saved: Path):
    before = digest(saved)
    for target in (saved, saved.parent / "." / "model.keras"):
        result = run(saved, "--to", "mc-dropout", "-o", target, "--overwrite")
        assert result.exit_code == 2
        assert "is an input" in result.stderr
    other = saved.with_name("other.keras")
    other.write_text("precious")
    assert "exists" in run(saved, "--to", "mc-dropout", "-o", other).stderr
    assert other.read_text() == "precious"
    failed = run(saved, "--to", "mc-dropout", "-o", other, "--overwrite", "--rate", "1.5")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("Error: `--rate` must be a number in [0, 1)")
    assert other.read_text() == "precious"
    assert run(saved, "--to", "mc-dropout", "-o", other, "--overwrite").exit_code == 0
    assert digest(saved) == before
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model.keras", "other.keras"]


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("variational", ["--rate", "0.1"]),
        ("deterministic", ["--rate", "0"]),
        ("deterministic", ["--layers", "all"]),
        ("deterministic", ["--seed", "0"]),
        ("mc-dropout", ["--prior", "normal"]),
        ("mc-dropout", ["--estimator", "flipout"]),
    ],
)
def test_an_option_without_use_is_refused_before_anything_is_read(tmp_path: Path, to: str, options: list[str]):
    result = run(tmp_path / "missing.keras", "--to", to, "-o", tmp_path / "out.keras", *options)
    assert result.exit_code == 2
    assert f"Invalid value for {options[0]}: it is for " in result.stderr
    assert f"not for {to}" in result.stderr


def test_messages_name_options(saved: Path):
    for options, expected in (
        (["--to", "variational", "--layers", "none_such"], "`--layers`=['none_such'] selects no layer"),
        (["--to", "mc-dropout", "--layers", "last"], "`--layers` inserts dropout, so it needs a `--rate`"),
        (["--to", "variational", "--prior", "x"], "`--prior` must be"),
        (["--to", "variational", "--estimator", "x"], "`--estimator` must be"),
    ):
        result = run(saved, "-o", saved.with_name("out.keras"), *options)
        assert result.exit_code == 1
        assert expected in result.stderr


def test_missing_and_damaged_files_are_named(saved: Path):
    target = saved.with_name("out.keras")
    missing = saved.with_name("missing.keras")
    assert "does not exist" in run(missing, "--to", "mc-dropout", "-o", target).stderr
    damaged = saved.with_name("damaged.keras")
    damaged.write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    assert "damaged" in run(damaged, "--to", "mc-dropout", "-o", target).stderr
    content = bytearray(saved.read_bytes())
    content[100:400] = bytes(300)
    damaged.write_bytes(bytes(content))
    result = run(damaged, "--to", "variational", "-o", target)
    assert result.exit_code == 1
    assert "cannot be loaded" in result.stderr or "damaged" in result.stderr
    assert not target.exists()
    assert "must end in .keras" in run(saved, "--to", "mc-dropout", "-o", saved.with_name("out.h5")).stderr
