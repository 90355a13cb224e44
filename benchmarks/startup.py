"""What `import bdl` adds to `import keras`, in seconds: fresh processes, in turn.

python benchmarks/startup.py --rounds 7
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Annotated

import numpy as np
import typer

PROGRAM = """
import time
start = time.perf_counter()
import keras
middle = time.perf_counter()
import bdl
print(middle - start, time.perf_counter() - middle)
"""


def main(rounds: Annotated[int, typer.Option(help="Fresh processes.")] = 7) -> None:
    """Prints the medians and the range."""
    times = []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
        times.append([float(part) for part in done.stdout.split()])
    keras_seconds, bdl_seconds = np.array(times).T
    result = {
        "import keras": float(np.median(keras_seconds)),
        "import bdl, after it": float(np.median(bdl_seconds)),
        "range": [float(bdl_seconds.min()), float(bdl_seconds.max())],
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    typer.run(main)
