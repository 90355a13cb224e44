"""What a file holds is checked against the types that it should have, and a wrong value is named by its place."""

import json
import math
from typing import Any

import numpy as np
import pytest

from bdl.diagnostics import Fit, LayerHealth, LocalLatents, Quantities, Refit, Trends
from bdl.diagnostics.schema import checked


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 3, 3),
        (int, np.int64(3), 3),
        (float, 3, 3.0),
        (float, np.float32(0.5), 0.5),
        (float | None, None, None),
        (float | None, math.inf, None),
        (float | None, 10**400, None),
        (bool, True, True),
        (str, "a\ud800", "a?"),
        (tuple[float, ...], [1, 2], (1.0, 2.0)),
        (dict[str, float], {"75%": 1}, {"75%": 1.0}),
        (Refit, {"change": "prior", "what": "x", "elbo": 1, "elbo_error": 0, "new": 1}, Refit("prior", "x", 1.0, 0.0)),
    ],
)
def test_what_fits_is_taken(kind: Any, value: Any, expected: Any) -> None:
    found = checked(kind, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", [None, math.nan, -math.inf, 1e101])
def test_a_number_that_must_be_there_is_nan_where_it_has_no_value(value: Any) -> None:
    assert math.isnan(checked(float, value))


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (int, True, "`a` must be a count, not True."),
        (int, 1.5, "`a` must be a count, not 1.5."),
        (int, -1, "`a` must be a count, not -1."),
        (int, 2**60, "`a` must be a count, not 1152921504606846976."),
        (float, "1", "`a` must be a number, not '1'."),
        (float | None, [], r"`a` must be a number, not \[\]."),
        (bool, 1, "`a` must be true or false, not 1."),
        (str, 1, "`a` must be a string, not 1."),
        (tuple[int, ...], "ab", "`a` must be a list, not 'ab'."),
        (tuple[Refit, ...], [{}], r"`a\[0\].change` must be given, not be missing."),
        (dict[str, float], {"b": "x"}, "`a.b` must be a number, not 'x'."),
        (int, "x" * 10**6, "`a` must be a count, not 'xxxxxxxxxxxx...xxxxxxxxxxxxx'."),
    ],
)
def test_what_does_not_fit_is_named(kind: Any, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(kind, value, "a")


def test_all_quantities_are_read_as_they_were_written() -> None:
    fit = Fit(50, 1.0, 0.5, 0.4, accuracy=0.9)
    quantities = Quantities(
        epoch=3,
        num_examples=100,
        finite=False,
        train=fit,
        twin=fit,
        pruned_accuracy={"75%": 0.5},
        layers=(LayerHealth("dense", 10, 3.0, draws_factors=True),),
        trends=Trends(5, 0.1),
        local=LocalLatents(0.5),
        refits=(Refit("prior", "x", -1.0, 0.1),),
        dropout_rates=(0.1, 0.2),
    )
    assert Quantities.from_dict(json.loads(json.dumps(quantities.to_dict()))) == quantities
