"""What the files beside the package say is what the package is."""

import re
import tomllib
from pathlib import Path

import bdl

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]
OF_TENSORFLOW = ("tensorflow", "tensorflow-probability", "tf-keras")


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group().rstrip(".-_")


def test_the_requirements_for_jax_are_those_of_the_package_without_tensorflow():
    lines = (ROOT / "requirements-jax.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    needed = {each for each in PROJECT["dependencies"] if name_of(each) not in OF_TENSORFLOW}
    assert listed == needed | set(PROJECT["optional-dependencies"]["jax"])


def test_extras_refer_to_each_other_by_the_name_of_the_distribution():
    extras = PROJECT["optional-dependencies"]
    for requirements in extras.values():
        own = [each for each in requirements if "[" in each and name_of(each) in ("bdl", PROJECT["name"])]
        for each in own:
            assert name_of(each) == PROJECT["name"]
            assert set(re.search(r"\[(.*)\]", each).group(1).split(",")) <= set(extras)


def test_the_version_is_that_of_the_package_everywhere():
    assert "version" in PROJECT["dynamic"]
    assert f"version: {bdl.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {bdl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_searches_are_in_no_distribution_and_no_test_needs_them():
    targets = SETTINGS["tool"]["hatch"]["build"]["targets"]
    assert "research" not in targets["wheel"]["packages"] + targets["sdist"]["include"]
    assert "research" not in SETTINGS["tool"]["pytest"]["ini_options"]["pythonpath"]
    files = [path for folder in ("bdl", "bdl_cli", "tests", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.py")]
    assert not [path for path in files if re.search(r"^\s*(from|import) research\b", path.read_text(), re.MULTILINE)]


def test_what_an_error_or_a_page_asks_to_install_exists():
    extras = set(PROJECT["optional-dependencies"])
    files = [*ROOT.glob("bdl/**/*.py"), *ROOT.glob("bdl_cli/*.py"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")]
    asked = {
        (name, extra)
        for path in files
        for name, found in re.findall(r"(\S*?)\[([a-z,]+)\]['\"]", path.read_text())
        if name.strip("'\"`(") in (".", "bdl", PROJECT["name"])
        for extra in found.split(",")
    }
    assert {extra for _, extra in asked} >= {"arviz", "tables"}
    assert {extra for _, extra in asked} <= extras
    assert not [name for name, _ in asked if name.strip("'\"`(") == "bdl"]
