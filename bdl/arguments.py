"""Checks of the arguments that several models and losses take."""

from __future__ import annotations

import math
from typing import Any

OBJECTIVES = ("elbo", "multi_sample")


def is_positive_integer(value: Any) -> bool:
    """Whether an argument is an integer above 0, of any library.

    Example:
    >>> is_positive_integer(np.int32(3)), is_positive_integer(True), is_positive_integer(3.0)
    (True, False, False)
    """
    return hasattr(value, "__index__") and not isinstance(value, bool) and int(value) > 0


def check_num_examples(num_examples: Any) -> int:
    """Checks the number of training examples."""
    if not is_positive_integer(num_examples):
        raise ValueError(
            f"`num_examples` must be the number of training examples, a positive integer, not {num_examples!r}. "
            "It divides the KL; without it the temperature of the ELBO is unknown."
        )
    return int(num_examples)


def check_kl_weight(kl_weight: Any) -> float:
    """Checks a constant temperature."""
    if not _is_finite_and_not_negative(kl_weight):
        raise ValueError(
            f"`kl_weight` must be a finite number >= 0 (the temperature T; 1 is Bayes) or a bdl.elbo.KLSchedule, "
            f"not {kl_weight!r}. Do not divide it by the number of examples: the ELBO does."
        )
    return float(kl_weight)


def check_free_bits(free_bits: Any) -> float:
    """Checks the rate that local divergences may have for free."""
    if not _is_finite_and_not_negative(free_bits):
        raise ValueError(f"`free_bits` must be a finite number >= 0, in nats per example, not {free_bits!r}.")
    return float(free_bits)


def check_num_samples(
    num_samples: Any, meaning: str = "draws of the weights in a training step", argument: str = "num_samples"
) -> int:
    """Checks a number of draws."""
    if not is_positive_integer(num_samples):
        raise ValueError(f"`{argument}` must be a positive integer ({meaning}), not {num_samples!r}.")
    return int(num_samples)


def check_positive_integer(value: Any, name: str) -> int:
    """Checks an argument that counts something."""
    if not is_positive_integer(value):
        raise ValueError(f"`{name}` must be a positive integer, not {value!r}.")
    return int(value)


def check_count(name: str, value: Any, least: int = 1, others: str = "") -> None:
    """Checks a whole number.

    Args:
        name: Of the argument.
        value: Its value.
        least: That it may be.
        others: What else it may be, in words, as in `"None or "`.

    Raises:
        ValueError: if it is none, or less.
    """
    if not hasattr(value, "__index__") or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"`{name}` must be {others}an integer of at least {least}, not {value!r}.")


def check_objective(objective: Any, free_bits: float) -> str:
    """Checks the name of an objective, and that it goes with free bits."""
    if objective not in OBJECTIVES:
        raise ValueError(f"`objective` must be one of {OBJECTIVES}, not {objective!r}.")
    if objective == "multi_sample" and free_bits:
        raise ValueError(
            f"`free_bits` must be 0 with objective='multi_sample', not {free_bits!r}: they bound the batch mean of the "
            "local KL, which does not stand apart there: it is inside the logarithm of each example."
        )
    return objective


def _is_finite_and_not_negative(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and math.isfinite(value)
