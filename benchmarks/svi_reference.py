"""Posteriors of `bdl.svi` against reference draws: the largest errors of marginal means and standard deviations.

    python benchmarks/svi_reference.py --data DIR

The settings are the same for every model: a full-rank guide, `start="laplace"`, the whole data in each of 2,000 steps
of Adam from 1e-2 with a cosine decay, eight draws a step, and the mean of the last thousand iterates. TensorFlow only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data as data_sets
import keras
import numpy as np
import tensorflow_probability as tfp

from bdl.svi import SVI, Flat, Global, Observed

tfd = tfp.distributions
NUM_STEPS = 2000
NUM_DRAWS = 10_000


def kidiq(data: Any) -> Iterator[Any]:
    """Test scores of children, by schooling and IQ of their mothers."""
    beta = yield Global("beta", Flat(shape=(4,)))
    sigma = yield Global("sigma", tfd.HalfCauchy(0.0, 2.5))
    school, iq = data["mom_hs"], data["mom_iq"]
    mean = beta[0] + beta[1] * school + beta[2] * iq + beta[3] * school * iq
    yield Observed("kid_score", tfd.Normal(mean, sigma), data["kid_score"])


def eight_schools(data: Any) -> Iterator[Any]:
    """Effects of coaching in eight schools, non-centred."""
    mu = yield Global("mu", tfd.Normal(0.0, 5.0))
    tau = yield Global("tau", tfd.HalfCauchy(0.0, 5.0))
    raw = yield Global("raw", tfd.Sample(tfd.Normal(0.0, 1.0), 8))
    yield Observed("y", tfd.Normal(mu + tau * raw, data["sigma"]), data["y"])


@dataclass(frozen=True)
class Case:
    """A model and how its reference draws are named.

    Args:
        story: The model.
        columns: Names of the data that have rows.
        numbers: From draws by site to a draw of each number, in the order of the reference's names.
    """

    story: Callable[..., Iterator[Any]]
    columns: tuple[str, ...]
    numbers: Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def _schools(draws: dict[str, np.ndarray]) -> list[np.ndarray]:
    effects = draws["mu"][:, None] + draws["tau"][:, None] * draws["raw"]
    return [*effects.T, draws["mu"], draws["tau"]]


CASES = {
    "kidiq-kidscore_interaction": Case(
        kidiq, ("mom_hs", "mom_iq", "kid_score"), lambda draws: [*draws["beta"].T, draws["sigma"]]
    ),
    "eight_schools-eight_schools_noncentered": Case(eight_schools, ("y", "sigma"), _schools),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with posteriordb/*.npz; default: that of BDL_DATA")
    parser.add_argument("--guide", default="full_rank", choices=("full_rank", "mean_field"))
    parser.add_argument("--start", default="laplace", choices=("laplace", "map", "prior"))
    arguments = parser.parse_args()
    folder = data_sets.folder_of(arguments.data)
    if folder is None:
        raise SystemExit("Say where the data are: --data DIR, or the environment variable BDL_DATA.")
    print(f"{'model':42}{'mean':>8}{'sd':>9}{'k-hat':>8}{'ess':>6}{'seconds':>9}")
    for name, case in CASES.items():
        reference = data_sets.posterior(folder, name)
        rows = {column: reference.data[column] for column in case.columns}
        rate = keras.optimizers.schedules.CosineDecay(1e-2, NUM_STEPS)
        model = SVI(case.story, arguments.guide, start=arguments.start, num_samples=8, seed=0)
        model.compile(keras.optimizers.Adam(rate))
        began = time.perf_counter()
        model.fit(rows, batch_size="all", steps=NUM_STEPS, verbose=0)
        seconds = time.perf_counter() - began
        draws = np.stack(case.numbers(model.posterior(num_samples=NUM_DRAWS, seed=1)), axis=1)
        means = np.abs(draws.mean(0) - reference.mean) / reference.sd
        sds = np.abs(draws.std(0) / reference.sd - 1)
        smoothed = model.k_hat(rows, num_samples=4000, seed=2)
        ess = smoothed.effective_sample_size / 4000
        figures = f"{means.max():8.3f}{100 * sds.max():8.1f}%{smoothed.k:8.2f}{ess:6.2f}{seconds:9.1f}"
        print(f"{name:42}{figures}", flush=True)


if __name__ == "__main__":
    main()
