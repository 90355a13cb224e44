"""All files of a command are checked together, before any is read or written."""

import os
from pathlib import Path

import pytest
import typer

from bdl_cli import paths
from bdl_cli.paths import check_files


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in.npz").write_text("precious")
    Path("old.json").write_text("old")
    Path("folder").mkdir()
    Path("link.html").symlink_to("in.npz")
    Path("new.html").symlink_to("made.html")
    Path("circle.html").symlink_to("circle.html")
    os.link("in.npz", "hard.html")
    return Path("in.npz")


def refused(outputs: dict[str, Path | None], overwrite: bool = False, **options: object) -> str:
    before = {path: path.lstat() for path in Path().iterdir()}
    with pytest.raises(typer.BadParameter) as caught:
        check_files([Path("in.npz")], outputs, overwrite, "FILE...", **options)  # type: ignore[arg-type]
    assert {path: path.lstat() for path in Path().iterdir()} == before
    return caught.value.message


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("in.npz", "in.npz is an input. Give another file."),
        ("./folder/../in.npz", "is an input"),
        ("link.html", "link.html is an input"),
        ("hard.html", "hard.html is an input"),
        ("circle.html", "cannot write circle.html: "),
        (".", ". is a folder. Give a file, such as report.html."),
        ("folder", "folder is a folder. Give a file, such as folder/report.html."),
        ("no/page.html", "the folder no does not exist. Make it first."),
        ("in.npz/page.html", "cannot write in.npz/page.html: Not a directory."),
        (os.devnull, f"{os.devnull} is not a regular file."),
        ("x" * 300, "cannot write x"),
    ],
)
def test_what_cannot_be_written_is_refused(source: Path, output: str, reason: str, overwrite: bool) -> None:
    assert reason in refused({"--output": Path(output)}, overwrite)


def test_an_existing_file_is_replaced_only_if_asked(source: Path) -> None:
    assert refused({"--json": Path("old.json")}) == (
        "old.json exists. Choose another name, or allow it to be replaced with --overwrite."
    )
    check_files([source], {"--json": Path("old.json")}, overwrite=True)
    assert Path("old.json").read_text() == "old"


def test_two_outputs_are_two_files(source: Path) -> None:
    both = {"--output": Path("r.json"), "--json": Path("./r.json")}
    assert refused(both, overwrite=True) == "r.json is written already, by --output. Give another file."
    check_files([source], {"--output": Path("r.html"), "--json": None}, overwrite=False)


def test_a_link_to_a_file_that_is_not_there_yet_is_written_through(source: Path) -> None:
    check_files([source], {"--output": Path("new.html")}, overwrite=False)
    assert "is written already" in refused({"--output": Path("new.html"), "--json": Path("made.html")})


def test_inputs_are_different_files_that_exist(source: Path) -> None:
    for twice in ("in.npz", "hard.html", "link.html"):
        with pytest.raises(typer.BadParameter, match=f"FILE... must be different files, not {twice} twice"):
            check_files([source, Path(twice)], {}, overwrite=False, hint="FILE...")
    for missing in ("missing.npz", "folder"):
        with pytest.raises(typer.BadParameter, match=f"{missing} does not exist, or is no file"):
            check_files([Path(missing)], {}, overwrite=False)


def test_what_may_be_an_input_is_one_if_it_is_a_file(source: Path) -> None:
    output = {"--json": Path("old.json")}
    assert "is an input" in refused(output, overwrite=True, others=[Path("old.json")])
    check_files([source], output, overwrite=True, others=[Path("y")])


def test_a_folder_that_cannot_be_written_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(paths.tempfile, "TemporaryFile", refuse)
    assert refused({"--output": Path("page.html")}) == "cannot write page.html: Permission denied."


def test_a_name_does_not_steer_the_terminal(source: Path) -> None:
    assert refused({"--output": Path("no\x1b[31m/page.html")}).startswith("the folder no\\x1b[31m does not exist")
