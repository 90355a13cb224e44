"""Simulation-based calibration: are posteriors of simulated data where they should be, and as wide?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from bdl.arguments import check_positive_integer
from bdl.random import draw_key, fold_in
from bdl.report import Paragraph, Row, Shown, Table
from bdl.svi.model import SVI
from bdl.svi.ranks import p_value
from bdl.svi.rows import as_data
from bdl.svi.story import num_rows
from bdl.svi.summary import columns
from bdl.training import data as training_data
from bdl.training.steps import build_optimizer


@dataclass(frozen=True, repr=False)
class Calibration(Shown):
    """Ranks of true values among draws of their posteriors; `print` and notebooks show verdicts as a table.

    `bdl.plots.rank_ecdf(found.by_name, found.num_draws)` draws them.

    Args:
        names: Of the numbers of the global sites, such as `"scale"` or `"effect[2]"`.
        ranks: How many draws of its posterior were below each true value, `(simulations, numbers)`.
        num_draws: Draws of each posterior.
        p_values: Of each number: the probability that uniform ranks stray as far.
        false_alarm: Probability that any number at all is rejected where all is right.
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    num_draws: int
    p_values: np.ndarray
    false_alarm: float

    @classmethod
    def of(cls, names: Sequence[str], ranks: np.ndarray, num_draws: int, false_alarm: float = 0.01) -> Calibration:
        """The verdict on ranks.

        Args:
            names: Of the numbers.
            ranks: `(simulations, numbers)`.
            num_draws: Draws of each posterior.
            false_alarm: As in `simulation_based_calibration`.

        Example:
        >>> ranks = np.random.default_rng(0).integers(0, 100, size=(200, 1))
        >>> Calibration.of(["a"], ranks, 99).is_calibrated, Calibration.of(["a"], ranks // 2, 99).is_calibrated
        (True, False)
        """
        values = np.array([p_value(each, num_draws) for each in ranks.T])
        return cls(tuple(names), np.asarray(ranks), num_draws, values, false_alarm)

    @property
    def by_name(self) -> dict[str, np.ndarray]:
        """Ranks of each number, `(simulations,)`: what `bdl.plots.rank_ecdf` draws."""
        return dict(zip(self.names, self.ranks.T, strict=True))

    @property
    def rejected(self) -> tuple[str, ...]:
        """Numbers whose ranks are not uniform: p-values of at most `false_alarm` over the number of numbers."""
        found = self.p_values <= self.false_alarm / len(self.names)
        return tuple(name for name, is_rejected in zip(self.names, found, strict=True) if is_rejected)

    @property
    def is_calibrated(self) -> bool:
        """Whether no number is rejected."""
        return not self.rejected

    @property
    def verdict(self) -> str:
        """The verdict in a sentence or two."""
        simulations = len(self.ranks)
        chance = f"(of {simulations} simulations; a false alarm has the probability {self.false_alarm:g} at most)"
        if self.is_calibrated:
            return f"Nothing was found: the ranks of all {len(self.names)} numbers may be uniform {chance}."
        found = ", ".join(f"{name} ({self._how(self.names.index(name))})" for name in self.rejected)
        return f"The posterior is not calibrated: {found} {chance}."

    def glance(self) -> Sequence[Paragraph | Table]:
        """A line for each number, and the verdict."""
        rows = [
            Row(name, [f"{value:.2g}", self._how(place) if name in self.rejected else "may be right"])
            for place, (name, value) in enumerate(zip(self.names, self.p_values, strict=True))
        ]
        return [Table(["p-value", "posterior"], rows), Paragraph(self.verdict)]

    def _how(self, place: int) -> str:
        """In which way a posterior is wrong: as the mean of the ranks shows it, or their variance."""
        uniform = (self.ranks[:, place] + 0.5) / (self.num_draws + 1)
        size = len(uniform)
        shift = (uniform.mean() - 0.5) / np.sqrt(1 / 12 / size)
        width = (np.mean((uniform - 0.5) ** 2) - 1 / 12) / np.sqrt(1 / 180 / size)
        if max(abs(shift), abs(width)) < 2.0:
            return "of another shape"
        if abs(shift) > abs(width):
            return "too low" if shift > 0 else "too high"
        return "too narrow" if width > 0 else "too wide"


def simulation_based_calibration(
    model: SVI,
    x: Any,
    num_simulations: int = 100,
    steps: int = 1000,
    batch_size: Any = "all",
    num_draws: int = 99,
    simulator: SVI | None = None,
    observed: Mapping[str, str] | None = None,
    false_alarm: float = 0.01,
    seed: int = 0,
    **settings: Any,
) -> Calibration:
    """Fits a model to data that were simulated from its own prior, and ranks what they were made with.

    For each simulation, global values are drawn from the prior, and data from the story given them. The model is fitted
    to these data, always from the same beginning, and each global number's true value is ranked among draws of its
    posterior. Where story, guide and fit are right all ranks are equally probable. So a wrong scale of the data, a
    number of rows N that is not the data's, a guide that is too narrow and a fit that was too short show, whatever the
    posterior is. That the story is right for your own data is another question: `bdl.plots.predictive_check`.

    One model is fitted again and again, so that its step is compiled once. It is quick with `start="prior"`, and with
    `model.compile(..., steps_per_execution=steps)`.

    Args:
        model: Compiled, and not fitted yet. It is left as it came, without a fit.
        x: Rows, as of `fit`: a dict whose inputs are kept, and whose observed entries are replaced.
        num_simulations: Number of simulations. A shift by .4 of a posterior's standard deviations, or a posterior that
            is a third too narrow, is found by 200 of them almost surely, and by 100 mostly.
        steps: Training steps of each fit.
        batch_size: Rows in a step, or `"all"`.
        num_draws: Draws of each posterior, among which true values are ranked.
        simulator: Model whose story simulates; None takes `model`'s own. With another one the ranks tell whether
            `model` may stand in for it.
        observed: Keys of `x` by observed site, where they have other names than the sites.
        false_alarm: Probability that a right model is rejected at all; a number's share of it is one over their number.
        seed: Integer; the same one gives the same simulations.
        **settings: Further arguments of `fit`, such as `callbacks`.

    Returns:
        A `Calibration`.

    Raises:
        ValueError: if the model is not compiled or has been fitted, the story has no global site or an improper prior,
            `x` lacks an observed entry, or an argument is of the wrong kind.

    Sources: Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based calibration", arXiv
    1804.06788; Säilynoja, Bürkner and Vehtari 2022, as in `bdl.svi.ranks.bands`.

    Example:
    >>> import keras
    >>> import tensorflow_probability as tfp
    >>> from bdl.svi import Global, Observed
    >>> def story(data):
    ...     mean = yield Global("mean", tfp.distributions.Normal(0.0, 1.0))
    ...     yield Observed("y", tfp.distributions.Normal(mean, 1.0), data["y"])
    >>> model = SVI(story, seed=0)
    >>> model.compile(keras.optimizers.Adam(0.1), steps_per_execution=300)
    >>> data = {"y": np.zeros(10, "float32")}
    >>> simulation_based_calibration(model, data, num_simulations=20, steps=300).is_calibrated
    True
    """
    num_simulations = check_positive_integer(num_simulations, "num_simulations")
    num_draws = check_positive_integer(num_draws, "num_draws")
    if not 0.0 < false_alarm < 1.0:
        raise ValueError(f"`false_alarm` must be a probability in (0, 1), not {false_alarm!r}.")
    if model.is_started or not model.compiled:
        state = "has been fitted" if model.is_started else "is not compiled"
        raise ValueError(
            f"`model` must be compiled and not fitted yet, and this one {state}. Make a new SVI, and compile that."
        )

    if training_data.is_data_set(x) or not isinstance(x, Mapping):
        raise ValueError(f"`x` must be a dict of arrays, whose observed entries are simulated, not {type(x).__name__}.")
    x = as_data(x, model.compute_dtype)
    prior = (simulator or model).sample_prior(x, num_simulations, seed)
    model.trace_on(x)
    keys = _keys_of(model, x, observed, prior)
    names = [site.name for site in model.sites if site.kind == "global"]
    if not names or any(name not in prior for name in names):
        raise ValueError(f"`story` must have global sites, those of the simulator, to be ranked, not {names}.")
    begin = _Beginning(model)
    ranks = []
    try:
        for number in range(num_simulations):
            begin.restore()
            made = {key: np.reshape(prior[site][number], x[key].shape) for site, key in keys.items()}
            model.fit({**x, **made}, batch_size=batch_size, steps=steps, verbose=0, **settings)
            words = ops.convert_to_numpy(fold_in(draw_key(seed), number))
            draws = model.posterior(num_samples=num_draws, seed=int(words.ravel()[0]) % 2**31)
            labels, flat = columns({name: draws[name] for name in names})
            _, true = columns({name: prior[name][number][None] for name in names})
            ranks.append((flat < true).sum(axis=0))
    finally:
        begin.restore()
        model.convergence = None
    return Calibration.of(labels, np.array(ranks), num_draws, false_alarm)


def _keys_of(model: SVI, x: Any, observed: Mapping[str, str] | None, prior: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Keys of the data by observed site."""
    sites = [site.name for site in model.sites if site.kind == "observed"]
    keys = {site: (observed or {}).get(site, site) for site in sites}
    for site, key in keys.items():
        if key not in x or site not in prior or prior[site][0].size != np.size(x[key]):
            raise ValueError(
                f"`x` must have an entry {key!r} of the numbers that the site {site!r} observes, for "
                f"{num_rows(x)} rows: it has {sorted(x)}. If it has another name, pass observed={{{site!r}: key}}."
            )
    return keys


class _Beginning:
    """The state of a model before a fit, to which it goes back.

    The generator of seeds goes on: the noise of one fit is independent of that of another.
    """

    def __init__(self, model: SVI) -> None:
        build_optimizer(model)
        kept = {id(model.seed_generator.state)}
        self._model = model
        self._variables = [each for each in (*model.variables, *model.optimizer.variables) if id(each) not in kept]
        self._values = [np.array(ops.convert_to_numpy(ops.convert_to_tensor(each))) for each in self._variables]

    def restore(self) -> None:
        for variable, value in zip(self._variables, self._values, strict=True):
            variable.assign(value)
        self._model.is_started = False
