"""Rules about the objective: is it finite, does it count each layer's KL once, and with which T (rungs 0 and 1)."""

from __future__ import annotations

from bdl.diagnostics.finding import Finding
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.symptoms import is_declared_cold, is_declared_one
from bdl.diagnostics.thresholds import THRESHOLDS as LIMIT


def diverged(q: Quantities) -> Finding | None:
    """Rung 0: loss or weights are no numbers."""
    if q.finite:
        return None
    return Finding("diverged", "certain", (f"A loss or weight is not finite at epoch {q.epoch}.",))


def accounting_error(q: Quantities) -> Finding | None:
    """Rung 0: the KL is missing, or a layer's is not counted once (Q2)."""
    counts = {layer.name: layer.counted for layer in q.layers if layer.counted is not None}
    missing = sorted(name for name, count in counts.items() if count == 0.0)
    if missing or (q.temperature == 0.0 and q.declared_temperature != 0.0):
        return Finding(
            "accounting_error",
            "certain",
            (f"The compiled loss does not contain the KL of {', '.join(missing) or 'any layer'}.",),
        )
    wrong = {
        layer.name: layer.counted
        for layer in q.layers
        if layer.counted is not None
        and abs(layer.counted - 1.0) > max(LIMIT.count_tolerance, LIMIT.count_errors * (layer.counted_error or 0.0))
    }
    if wrong:
        found = ", ".join(f"{name} {count:.3g} times" for name, count in wrong.items())
        return Finding("accounting_error", "certain", (f"The loss counts the KL of some layers differently: {found}.",))
    whole = round(q.temperature or 0.0)
    is_multiple = 2 <= whole <= 4 and abs(q.temperature / whole - 1.0) < LIMIT.count_tolerance  # type: ignore[operator]
    if is_multiple and q.declared_temperature != q.temperature and is_declared_one(q) and q.told_examples is None:
        return Finding(
            "accounting_error",
            "certain",
            (f"The loss contains every layer's KL {whole} times (measured T = {q.temperature:.3f}).",),
        )
    return None


def mis_scaled_kl(q: Quantities) -> Finding | None:
    """Rung 1: the effective temperature is not about 1 (Q1)."""
    if q.temperature is None or LIMIT.temperature_low <= q.temperature <= LIMIT.temperature_high:
        return None
    if is_declared_cold(q) and q.told_examples is None:
        return None
    evidence = [f"The objective weights the KL with T = {q.temperature:.4g}; Bayes is T = 1."]
    if q.told_examples is not None:
        evidence.append(
            f"The KL is divided by num_examples={q.told_examples}, and fit was given {q.num_examples} examples."
        )
    elif q.num_examples and abs(q.temperature / q.num_examples - 1.0) < LIMIT.count_tolerance:
        evidence.append(f"T equals the number of training examples, {q.num_examples}: the KL is not divided by N.")
    if q.declared_temperature is not None and q.declared_temperature != 1.0:
        evidence.append(f"kl_weight={q.declared_temperature:g} asks for it.")
    return Finding("mis_scaled_kl", "certain", tuple(evidence))
