"""What a verdict is: its name, how sure it is, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass

VERDICTS = (
    "diverged",
    "accounting_error",
    "mis_scaled_kl",
    "no_signal",
    "still_training",
    "underfitting",
    "collapsed",
    "over_pruned",
    "variance_saturated",
    "scales_not_learned",
    "near_deterministic",
    "overfitting",
    "healthy",
    "inconclusive",
)
"""Names of the verdicts, in the order in which they are asked, and `healthy`, where none fires."""
UNREMARKABLE = ("healthy", "inconclusive", "still_training")
"""Verdicts that nobody need be told of while there is something else to do."""
HOPELESS = ("diverged", "accounting_error", "mis_scaled_kl", "collapsed")
"""Verdicts on which going on with the same run is a waste."""


@dataclass(frozen=True)
class Finding:
    """A verdict and its evidence.

    Args:
        verdict: One of `VERDICTS`.
        confidence: `"certain"`, `"probable"` or `"possible"`.
        evidence: Sentences with numbers.
    """

    verdict: str
    confidence: str
    evidence: tuple[str, ...]
