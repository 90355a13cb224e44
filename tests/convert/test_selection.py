"""Layers in the order of the model, each once, units not entered."""

from typing import Any

import pytest
from networks import made

from bdl.convert.selection import select, walk


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("tagger", ["Embedding", "NotEqual", "Bidirectional", "LSTM", "LSTM", "TimeDistributed"]),
        ("subclassed", ["Dense", "Dense", "BatchNormalization", "Dropout", "Dense"]),
        ("shared and nested", ["Dense", "Sequential", "Dense", "Dropout", "Dense"]),
    ],
)
def test_walk_sees_each_layer_once(name: str, kinds: list[str]):
    found = [type(layer).__name__ for layer in walk(made(name)[0])]
    assert [kind for kind in found if kind != "NotEqual"] == [kind for kind in kinds if kind != "NotEqual"]


def test_a_selection_keeps_the_order_of_the_model_and_has_no_doubles():
    model, _ = made("images")

    def has_kernel(layer: Any) -> bool:
        return bool(layer.weights)

    names = [layer.name for layer in select(model, ["last", "all"], has_kernel, "layers")]
    assert names == [layer.name for layer in walk(model) if layer.weights]
