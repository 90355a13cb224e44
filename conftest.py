"""Settings of every test, those in docstrings included."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from typing import Any

import keras
import numpy as np
import pytest
from seeds import seed_everything

import bdl


def pytest_collection_finish() -> None:
    """Spares the garbage collector what was imported: a tenth of the suite's time went there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def _names_of_docstring_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(np=np, keras=keras, bdl=bdl)


@pytest.fixture(autouse=True)
def _seeds(request: pytest.FixtureRequest) -> None:
    """The same initial weights and noise in every run, whatever the order of the tests."""
    seed_everything(request.node.nodeid)
