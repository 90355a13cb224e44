"""Makes the helpers beside this file importable; `pythonpath = ["tests"]` in pyproject.toml would do the same."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
