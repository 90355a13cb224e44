"""What examples/volatility.py compares with: GARCH by the package arch, and errors of a difference of scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats
from volatility_filter import Forecast


def rivals(y: np.ndarray, first_day: int) -> dict[str, Forecast]:
    """A constant normal distribution, and GARCH(1,1) by the package arch, fitted to the days before `first_day`."""
    past = y[:first_day]
    found = {"constant, normal": _standardised(stats.norm, (y - past.mean()) / past.std(), past.std())}
    try:
        from arch import arch_model
    except ImportError:
        print("The rows of GARCH are left out: they need the package arch (pip install arch).")
        return {name: each.since(first_day) for name, each in found.items()}
    for name, order, noise in (("GARCH, normal", 0, "normal"), ("GARCH, t", 0, "t"), ("GJR-GARCH, t", 1, "t")):
        settings = {"vol": "GARCH", "p": 1, "o": order, "q": 1, "dist": noise, "rescale": False}
        values = arch_model(past, mean="Constant", **settings).fit(disp="off").params
        scale = np.asarray(arch_model(y, mean="Constant", **settings).fix(values).conditional_volatility)
        residual, law = (y - values["mu"]) / scale, stats.norm
        if noise == "t":
            law = stats.t(values["nu"], scale=np.sqrt(1.0 - 2.0 / values["nu"]))
        found[name] = _standardised(law, residual, scale)
    return {name: each.since(first_day) for name, each in found.items()}


def _standardised(law: Any, residual: np.ndarray, scale: Any) -> Forecast:
    """Forecasts of a law of the standardised residuals."""
    return Forecast(law.logpdf(residual) - np.log(scale), law.cdf(residual), scale + 0.0 * residual)


def standard_error(differences: np.ndarray) -> float:
    """Of the mean of a series, by Newey and West's estimate: days of high volatility come together (Diebold-Mariano).

    With the lags `4 (n / 100)^(2/9)` of Newey and West 1994.
    """
    n, centred = len(differences), differences - differences.mean()
    lags = int(4 * (n / 100) ** (2 / 9))
    variance = centred @ centred
    for lag in range(1, lags + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1)) * (centred[lag:] @ centred[:-lag])
    return float(np.sqrt(variance) / n)
