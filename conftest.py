"""Settings of every test, those in docstrings included."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from typing import Any

import keras
import numpy as np
import pytest

import bdl


@pytest.fixture(autouse=True)
def _names_of_docstring_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(np=np, keras=keras, bdl=bdl)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same initial weights and noise in every run, whatever the order of the tests."""
    keras.utils.set_random_seed(0)
