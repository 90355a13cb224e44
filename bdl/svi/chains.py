"""Several chains: guides of one story that are fitted side by side from starts of their own, and how well they agree.

Each chain has a copy of every guide, and noise of its own. A step goes down the sum of the chains' losses, of which
each reads the variables of one chain alone: its gradient is that of a single fit, and an optimizer that treats each
number by itself makes as many independent fits. Chains that end in different places have found local optima, or have
not come to rest: one fit alone does not show either.

Results are those of one chain, and not of a mixture of all: draws of one guide have a density that is known, so that
importance weights stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.keras_internals import current_value, flatten_layers
from bdl.random import Tensor, fold_in, uniform
from bdl.report import Paragraph, Row, Shown, Table
from bdl.svi.checks import Chains
from bdl.svi.guides import Guide
from bdl.svi.summary import columns, shown
from bdl.training.averaging import LAST_PART

SPREAD = 2.0
"""Half the width of the interval around the start, on the real line, in which the other chains begin, as in Stan."""

NUM_TRIES = 100
"""Points that are tried for a chain until the log joint density is finite, as in Stan."""

MEMORY = 100
"""Steps over which the loss of each chain is averaged, about, or the last fifth of a shorter fit."""

LARGEST_R_HAT = 1.1
"""R-hat above which chains disagree (Gelman et al. 2013, "Bayesian data analysis", section 11.4)."""

LARGEST_GAP = 1.0
"""Nats in total by which the ELBO of a chain may be below the best."""

NUM_ERRORS = 3.0
"""Standard errors by which such a gap must be clear of noise."""


def copied(guides: Sequence[Guide], chain: int) -> list[Guide]:
    """Guides of the same kinds for the same sites, with variables and networks of their own, initialised anew.

    Args:
        guides: Bound to their sites.
        chain: Number of the chain that they are for, which becomes part of their names.

    Raises:
        ValueError: if a guide's configuration does not make it again, or two guides share a layer.

    Example:
    >>> from bdl.svi import FullRank
    >>> guide = FullRank(name="joint")
    >>> guide.bind({"mean": 1})
    >>> [other] = copied([guide], 1)
    >>> other.name, other.sizes, other.shift is guide.shift
    ('joint_1', {'mean': 1}, False)
    """
    layers = [layer for guide in guides for layer in flatten_layers(guide)]
    shared = {layer.name for layer in layers if sum(layer is other for other in layers) > 1}
    if shared:
        raise ValueError(
            f"`guide` must have layers of its own for each guide where `num_chains` is above 1, and {sorted(shared)} "
            "are in several: their copies would not be shared. Give each Amortized guide a network of its own."
        )
    with of_chain(chain):
        return [_copied(guide, chain) for guide in guides]


def of_chain(chain: int) -> AbstractContextManager[Any]:
    """Within this context variables that are made have the chain in their paths.

    Copies have layers of one name. Torch's modules know variables by their paths, and of two with one path they would
    set the gradient of one back.
    """
    return keras.name_scope(f"chain_{chain}")


def _copied(guide: Guide, chain: int) -> Guide:
    try:
        copy = type(guide).from_config({**guide.get_config(), "name": f"{guide.name}_{chain}"})
        copy.build_from_config(guide.get_build_config())
    except Exception as error:
        raise ValueError(
            f"`guide` must be made again by its configuration where `num_chains` is above 1, which {guide.name!r} is "
            f"not ({type(error).__name__}: {error}). Register its layers and functions with "
            "@keras.saving.register_keras_serializable()."
        ) from error
    return copy


def scattered(
    point: Mapping[str, np.ndarray],
    names: Sequence[str],
    log_density: Callable[[Mapping[str, np.ndarray]], float],
    key: Tensor,
) -> dict[str, np.ndarray]:
    """A point around another one, uniformly within `SPREAD` of it in each coordinate, at which a density is finite.

    Args:
        point: Numbers on the real line by site.
        names: Of the sites that move.
        log_density: Of all sites, at a point.
        key: Of the noise.

    Raises:
        ValueError: if the density is finite at none of `NUM_TRIES` points.

    Example:
    >>> from bdl.random import draw_key
    >>> moved = scattered({"a": np.zeros(3)}, ["a"], lambda point: 0.0, draw_key(0))["a"]
    >>> bool(np.all(np.abs(moved) <= 2.0) and np.all(moved != 0.0))
    True
    """
    for attempt in range(NUM_TRIES):
        at = fold_in(key, attempt)
        moved = {
            name: point[name] + SPREAD * (2.0 * _uniform(point[name].shape, fold_in(at, place)) - 1.0)
            for place, name in enumerate(names)
        }
        if np.isfinite(log_density({**point, **moved})):
            return {**point, **moved}
    raise ValueError(
        f"`start` must have a finite log joint density around it, within {SPREAD:g} in each number on the real line, "
        f"where the other chains begin: it was finite at none of {NUM_TRIES} points. Pass start={{site: value}} with "
        "values further inside, or num_chains=1."
    )


def _uniform(shape: Sequence[int], key: Tensor) -> np.ndarray:
    return ops.convert_to_numpy(uniform(shape, key)).astype("float64")


def together(values: Sequence[Tensor], chosen: Tensor | None) -> Tensor:
    """The mean of the chains' scalars, or that of one of them.

    Args:
        values: Of each chain.
        chosen: Number of the chain; None takes the mean of all.

    Example:
    >>> [float(together([1.0, 2.0, 6.0], chosen)) for chosen in (None, 1)]
    [3.0, 2.0]
    """
    if len(values) == 1:
        return values[0]
    stacked = ops.stack([ops.convert_to_tensor(value) for value in values])
    return ops.mean(stacked) if chosen is None else ops.take(stacked, chosen)


def descended(losses: Sequence[Tensor]) -> Tensor:
    """The mean of the chains' losses, with the gradient of their sum.

    So each chain takes the steps of a single fit, and the logs are on the scale of one.
    """
    total = sum(losses[1:], losses[0])
    return total + ops.stop_gradient(together(losses, None) - total) if len(losses) > 1 else total


class ChainLosses:
    """What each chain lost over the last steps, and which chain has been picked.

    All are variables of the model, so that files and checkpoints have them. The mean covers the last fifth of the steps
    of the fit so far, as `bdl.training.averaging.AveragingAdam` does, until these are more than `MEMORY`; then it is an
    exponential one of that length. So it forgets where a chain began, which may have been far away.

    Args:
        model: The model that is trained.
        num_chains: How many chains it has.

    Example:
    >>> losses = ChainLosses(keras.Sequential(), 2)
    >>> for _ in range(4):
    ...     losses.update([ops.convert_to_tensor(3.0), ops.convert_to_tensor(1.0)])
    >>> losses.means, losses.chosen
    (array([3., 1.]), 1)
    """

    def __init__(self, model: keras.Model, num_chains: int) -> None:
        def weight(name: str, shape: tuple[int, ...], dtype: str | None, aggregation: str) -> keras.Variable:
            return model.add_weight(
                name=name, shape=shape, dtype=dtype, initializer="zeros", trainable=False, aggregation=aggregation
            )

        self._mean = weight("chain_loss", (num_chains,), None, "mean")
        self._variance = weight("chain_variance", (num_chains,), None, "mean")
        self._seen = weight("chain_steps", (), "int32", "only_first_replica")
        self._picked = weight("chain_picked", (), "int32", "only_first_replica")  # plus one; 0 is the best

    def begin(self) -> None:
        """Begins a training: what was lost on other data counts no more."""
        self._seen.assign(0)

    def update(self, losses: Sequence[Tensor]) -> None:
        """Adds the losses of a step, which may be compiled.

        Args:
            losses: Of each chain, per row, in nats.
        """
        steps = ops.convert_to_tensor(self._seen) + 1
        values = ops.cast(ops.stop_gradient(ops.stack(list(losses))), self._mean.dtype)
        share = ops.cast(1.0 / self._length(ops.cast(steps, "float32")), self._mean.dtype)
        mean, variance = current_value(self._mean), current_value(self._variance)
        mean = ops.where(steps == 1, values, mean)  # whatever it was before, such as no number
        variance = ops.where(steps == 1, ops.zeros_like(variance), variance)
        change = values - mean
        # Chains share their rows: the noise of batches is that of all, and what tells chains apart is without it.
        apart = change - ops.mean(change)
        self._variance.assign((1.0 - share) * (variance + share * apart**2))
        self._mean.assign(mean + share * change)
        self._seen.assign(steps)

    @property
    def means(self) -> np.ndarray:
        """Mean loss of each chain per row, in nats, over the last steps."""
        return ops.convert_to_numpy(current_value(self._mean)).astype("float64")

    @property
    def chosen(self) -> int:
        """Number of the chain that was picked, or of that with the lowest loss."""
        return int(ops.convert_to_numpy(self.choice()))

    def choice(self) -> Tensor:
        """The same as a tensor, for a compiled function."""
        picked, mean = current_value(self._picked), current_value(self._mean)
        best = ops.argmin(ops.where(ops.isfinite(mean), mean, np.inf))
        return ops.where(picked > 0, picked - 1, ops.cast(best, picked.dtype))

    def pick(self, chain: int | None) -> None:
        """Picks a chain; None takes the best."""
        self._picked.assign(0 if chain is None else chain + 1)

    def gaps(self, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
        """How far each chain's ELBO is below the best, and the standard errors, in nats in total: `(chains,)` each."""
        means = self.means
        variance = ops.convert_to_numpy(current_value(self._variance)).astype("float64")
        best = int(np.argmin(np.where(np.isfinite(means), means, np.inf)))
        length = float(ops.convert_to_numpy(self._length(ops.cast(current_value(self._seen), "float32"))))
        errors = np.sqrt((variance + variance[best]) / length)
        errors[best] = 0.0
        return num_examples * (means - means[best]), num_examples * errors

    @staticmethod
    def _length(steps: Tensor) -> Tensor:
        """Over how many of so many steps the mean goes."""
        return ops.clip(1.0 + LAST_PART * (steps - 1.0), 1.0, float(MEMORY))


@dataclass(frozen=True, repr=False)
class Agreement(Shown):
    """Whether the chains of a model agree; `print` and notebooks show it as a table.

    Args:
        names: Of the numbers of the global sites, such as `"scale"` or `"effect[2]"`.
        r_hat: Of each, between the chains' guides: 1 where they agree. It is one of ranks: however far chains are
            apart, it does not rise far above 2. NaN where a guide is a point, within which nothing varies.
        means: Of each chain and number, `(chains, numbers)`.
        sds: Standard deviations, in the same shape.
        elbo: Of each chain, per row in nats: the objective over about the last 100 steps of the fit, or the last fifth
            of a shorter one, with T and the weighted bound where they were asked for.
        gap: How far it is below the best, in nats in total.
        gap_error: Standard error of each gap.

    Source of `r_hat`: `bdl.svi.checks.Chains`.
    """

    names: tuple[str, ...]
    r_hat: np.ndarray
    means: np.ndarray
    sds: np.ndarray
    elbo: np.ndarray
    gap: np.ndarray
    gap_error: np.ndarray

    @classmethod
    def of(
        cls, draws: Sequence[Mapping[str, np.ndarray]], elbo: np.ndarray, gap: np.ndarray, gap_error: np.ndarray
    ) -> Agreement:
        """The agreement of draws.

        Args:
            draws: Of each chain, by global site `(draws, *shape)`.
            elbo: Of each chain.
            gap: Of each chain.
            gap_error: Of each chain.

        Example:
        >>> draws = np.random.default_rng(0).normal(size=(2, 1000))
        >>> elbo, gap, error = np.array([-2.0, -2.0]), np.zeros(2), np.zeros(2)
        >>> print(Agreement.of([{"a": draws[0]}, {"a": draws[1]}], elbo, gap, error).verdict)
        The 2 chains agree.
        >>> Agreement.of([{"a": draws[0]}, {"a": draws[1] + 3.0}], elbo, gap, error).is_reached
        False
        """
        names: tuple[str, ...] = ()
        numbers = np.zeros((len(draws), 4, 0))
        if draws[0]:
            names, numbers = columns(draws[0])[0], np.stack([columns(each)[1] for each in draws])
        means, sds = numbers.mean(axis=1), numbers.std(axis=1, ddof=1)
        r_hat = np.full(len(names), np.nan)
        varies = (np.ptp(numbers, axis=1) > 0).all(axis=0)
        finite = np.isfinite(numbers).all(axis=(0, 1))
        if (varies & finite).any():
            r_hat[varies & finite] = Chains(numbers[..., varies & finite], divergences=0).r_hat
        r_hat[~finite] = np.inf
        return cls(names, r_hat, means, sds, elbo, gap, gap_error)

    @property
    def worse(self) -> tuple[int, ...]:
        """Chains whose ELBO is well below the best, by more than a nat and than noise, or no number."""
        is_worse = (self.gap > LARGEST_GAP) & (self.gap > NUM_ERRORS * self.gap_error)
        return tuple(int(chain) for chain in np.flatnonzero(is_worse | ~np.isfinite(self.gap)))

    @property
    def largest_r_hat(self) -> float | None:
        """The largest R-hat; None where there is none."""
        known = self.r_hat[~np.isnan(self.r_hat)]
        return float(known.max()) if known.size else None

    @property
    def is_reached(self) -> bool:
        """Whether the chains agree."""
        return not self.worse and (self.largest_r_hat or 1.0) <= LARGEST_R_HAT

    @property
    def verdict(self) -> str:
        """Whether the chains agree, in a few sentences."""
        found = []
        largest = self.largest_r_hat
        if largest is not None and largest > LARGEST_R_HAT:
            name = self.names[int(np.nanargmax(self.r_hat))]
            found.append(f"R-hat of {name} is {largest:.3g}, above {LARGEST_R_HAT}.")
        if self.worse:
            gaps = ", ".join(f"{chain} by {self.gap[chain]:.3g}" for chain in self.worse)
            found.append(f"The ELBO is well below the best in chains (nats): {gaps}.")
        if found:
            return " ".join(["The chains disagree: local optima, or an unfinished fit.", *found])
        if np.isnan(self.r_hat).any():
            return (
                f"The ELBOs of the {len(self.elbo)} chains agree. A point (Delta) has no R-hat: whether such chains "
                "are at one place, their means must show."
            )
        return f"The {len(self.elbo)} chains agree."

    def glance(self) -> Sequence[Paragraph | Table]:
        """Both tables, and the verdict."""
        rows = [
            Row(name, [shown(r_hat), *(f"{mean:.3g} ± {sd:.2g}" for mean, sd in zip(means, sds, strict=True))])
            for name, r_hat, means, sds in zip(self.names, self.r_hat, self.means.T, self.sds.T, strict=True)
        ]
        elbo = [Row("ELBO per row", ["", *(f"{value:.4g}" for value in self.elbo)])]
        titles = ["R-hat", *(f"chain {chain}" for chain in range(len(self.elbo)))]
        return [Table(titles, [*rows, *elbo]), Paragraph(self.verdict)]
