"""A process that fits, predicts, converts, saves and loads again and again does not grow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.core
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
def test_memory_stays_within_five_per_cent():
    """New models are only called, for TensorFlow frees nothing that it compiled. In a process of its
    own, which holds no other test's memory.
    """
    options = ["--cycles", "20", "--warm-up", "4", "--every", "5", "--call-new"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command, environment = [sys.executable, "benchmarks/soak.py", *options], {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    row = json.loads(run.stdout.splitlines()[-1])
    assert len(row["mebibytes"]) == 5
    assert abs(row["growth_percent"]) < 5
