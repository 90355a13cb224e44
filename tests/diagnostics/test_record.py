"""Records that were cut, mixed or never begun."""

import json
import os

import pytest

from bdl.diagnostics import diagnose, diagnose_record, read_record
from bdl.diagnostics.record import append

START = {"event": "start", "format": 1, "run": "a", "num_examples": 100, "planned_epochs": 9}


def epoch(number, run="a", **logs):
    return {"event": "epoch", "run": run, "epoch": number, "logs": {"loss": 1.0, "nll": 0.5, "kl": 3.0, **logs}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.jsonl"
    append(path, START)
    for number in (1, 2, 3):
        append(path, epoch(number))
    return path


def test_round_trip(path):
    (run,) = read_record(path)
    assert [entry["epoch"] for entry in run.epochs] == [1, 2, 3]
    assert not run.is_complete
    assert not run.is_cut


def test_a_cut_record_says_so(path):
    os.truncate(path, path.stat().st_size - 20)
    (run,) = read_record(path)
    assert run.is_cut
    assert len(run.epochs) == 2
    report = diagnose(record=path)
    assert report.verdict == "inconclusive"
    assert "cut in the middle" in str(report)


def test_a_run_goes_on_after_one_that_was_killed(path):
    os.truncate(path, path.stat().st_size - 20)
    append(path, {**START, "run": "b"})
    append(path, epoch(1, "b"))
    assert [len(run.epochs) for run in read_record(path)] == [2, 1]


def test_two_runs_writing_at_a_time_are_told_apart(path):
    append(path, {**START, "run": "b"})
    append(path, epoch(1, "b"))
    append(path, epoch(4, "a"))
    assert [len(run.epochs) for run in read_record(path)] == [4, 1]
    assert list(diagnose_record(path)) == ["run #1", "run #2"]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_record_is_an_error(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="is empty"):
        read_record(path)


@pytest.mark.parametrize("content", ["not json", '{"a": 1}', "[1]", '{"event": "epoch"}'])
def test_other_files_are_an_error(tmp_path, content):
    path = tmp_path / "other.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="no training record"):
        read_record(path)


def test_a_missing_file_and_a_newer_format_are_errors(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        read_record(tmp_path / "none.jsonl")
    (tmp_path / "new.jsonl").write_text(json.dumps({**START, "format": 99}))
    with pytest.raises(ValueError, match="Upgrade bdl"):
        read_record(tmp_path / "new.jsonl")


def test_nan_is_written_as_null_and_read_as_divergence(path):
    append(path, epoch(4, loss=float("nan")))
    assert "NaN" not in path.read_text()
    assert diagnose(record=path).verdict == "diverged"
