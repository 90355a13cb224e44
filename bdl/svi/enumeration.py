"""Discrete local sites of few values, summed out: the exact sum inside the logarithm of each row.

A run of the story on rows that are repeated, once for each combination k of the values of such sites, tells the log
density of each site by row and combination. Site by site, in a filter over the combinations, these become densities
without the indicators. With w_k = p(k | what came before), which is 1/K before the first indicator,

    log p(x | before) = log sum_k w_k p(x | k, before),     w_k <- w_k p(x | k, before) / p(x | before)

Latent sites come first and observed ones last, whatever their order in the story: so the divergence of another local
site is from its prior without the indicators, and the log likelihood of a row is given its other latent values. What
w_k is in the end is the exact probability of each combination given data and other latent values.

All that has rows must come from the story's data, or it would not be repeated with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl.random import Tensor, of_examples, uniform
from bdl.svi import supports
from bdl.svi.story import Local, Observed, Site, Variable, at_site


@dataclass(frozen=True)
class Combinations:
    """All combinations of the values of a story's enumerated sites.

    Args:
        sites: These sites, in the order of the story; none has one empty combination.

    Raises:
        ValueError: if there are too many combinations.

    Example:
    >>> both = Combinations((Site("a", "enumerated", (), num_values=2), Site("b", "enumerated", (), num_values=3)))
    >>> both.number, both.repeat(np.array([5.0, 7.0])).shape
    (6, TensorShape([12]))
    """

    sites: tuple[Site, ...]

    def __post_init__(self) -> None:
        if self.number > supports.MOST_VALUES:
            raise ValueError(
                f"The discrete sites {[site.name for site in self.sites]} must have at most {supports.MOST_VALUES:,} "
                f"combinations of values in a row, not {self.number:,}: each is an evaluation of the story. Sum one of "
                "them out in the story, as a mixture does, draw it from a guide, Amortized(..., family='categories'), "
                "or give a continuous one in its place."
            )

    @classmethod
    def of(cls, sites: Iterable[Site]) -> Combinations:
        """Those of a story's sites."""
        return cls(tuple(site for site in sites if site.kind == "enumerated"))

    @property
    def number(self) -> int:
        """How many there are."""
        return math.prod(site.num_values for site in self.sites)

    def repeat(self, data: Any) -> Any:
        """Tensors in any structure, each row once for each combination, one after the other."""
        return repeat_rows(data, self.number) if self.sites else data

    def every(self, rows: Tensor | int) -> Tensor:
        """The combination of each of the repeated rows, `(rows * number,)`."""
        return ops.reshape(ops.broadcast_to(ops.arange(self.number, dtype="int32"), (rows, self.number)), (-1,))

    def first(self, rows: Tensor | int) -> Tensor:
        """The first combination in each row, `(rows,)`."""
        return ops.zeros((rows,), dtype="int32")

    def apart(self, values: Tensor) -> Tensor:
        """What belongs to repeated rows, by row and combination: `(rows, number, ...)`."""
        return ops.reshape(values, (-1, self.number, *values.shape[1:]))

    def value(self, variable: Variable, combination: Tensor) -> Tensor:
        """The value of an enumerated site in a combination for each row.

        Args:
            variable: The site, as the story yields it.
            combination: `(rows,)`.

        Returns:
            `(rows, *shape)`.

        Raises:
            ValueError: if its distribution has another number of values than on the batch that was traced.
        """
        place = next(number for number, site in enumerate(self.sites) if site.name == variable.name)
        site = self.sites[place]
        values = all_values(variable, site.shape)
        if values.shape[0] != site.num_values:
            raise ValueError(
                f"Site {site.name!r} must have {site.num_values} values on all batches, not {values.shape[0]} on one."
            )
        after = math.prod(each.num_values for each in self.sites[place + 1 :])
        return ops.take(values, (combination // after) % site.num_values, axis=0)

    def marginal(self, site: Site, probabilities: Tensor) -> Tensor:
        """Probabilities of a site's values, `(rows, values)`, from those of the combinations, `(rows, number)`."""
        by_site = ops.reshape(probabilities, (-1, *(each.num_values for each in self.sites)))
        others = tuple(1 + number for number, each in enumerate(self.sites) if each.name != site.name)
        return ops.sum(by_site, axis=others) if others else by_site


def repeat_rows(data: Any, number: int) -> Any:
    """Tensors in any structure, each row so many times, one after the other.

    Example:
    >>> np.asarray(repeat_rows(np.array([5.0, 7.0]), 2)).tolist()
    [5.0, 5.0, 7.0, 7.0]
    """

    def repeated(rows: Tensor) -> Tensor:
        rows = ops.convert_to_tensor(rows)
        rest = tuple(rows.shape[1:])
        return ops.reshape(ops.tile(rows[:, None], [1, number, *(1 for _ in rest)]), (-1, *rest))

    return keras.tree.map_structure(repeated, data)


@dataclass(frozen=True, eq=False)
class Summed:
    """Densities of the sites of a run, the indicators summed out.

    Args:
        log_prob: Log density of each local and observed site but the indicators, given those before it: `(rows,)`.
            None depends on the value of a later one; in the order of the story, or with indicators observed ones last.
        log_weights: Log probability of each combination given all of them, `(rows, number)`; zeros of one combination.
        depends: Local sites that come after an indicator, whose prior may depend on it.
    """

    log_prob: dict[str, Tensor]
    log_weights: Tensor
    depends: frozenset[str]


def sum_out(combinations: Combinations, densities: Mapping[str, tuple[Variable, Tensor]]) -> Summed:
    """The filter over the combinations; see the module.

    Args:
        combinations: Of the story.
        densities: The local and observed sites in the order of the story, with their log densities on the repeated
            rows.

    Example:
    >>> coin, y = Site("coin", "enumerated", (), num_values=2), np.log([0.2, 0.6])
    >>> sites = {"coin": (Local("coin", None), np.log([0.5, 0.5])), "y": (Observed("y", None, None), y)}
    >>> summed = sum_out(Combinations((coin,)), sites)
    >>> np.exp(summed.log_prob["y"]), np.exp(summed.log_weights)
    (array([0.4]), array([[0.25, 0.75]]))
    """
    log_prob: dict[str, Tensor] = {}
    weights = None
    indicators = {site.name for site in combinations.sites}
    for name in sorted(densities, key=lambda name: bool(indicators) and isinstance(densities[name][0], Observed)):
        density = combinations.apart(ops.convert_to_tensor(densities[name][1]))
        if name in indicators:
            weights = ops.log_softmax(density if weights is None else weights + density, axis=-1)
        elif weights is None:
            log_prob[name] = density[:, 0]
        else:
            log_prob[name] = ops.logsumexp(weights + density, axis=-1)
            weights = weights + density - log_prob[name][:, None]
    if weights is None:
        weights = ops.zeros_like(density)
    names = list(densities)
    begin = min((names.index(name) for name in indicators), default=len(names))
    return Summed(log_prob, weights, frozenset(name for name in names[begin:] if isinstance(densities[name][0], Local)))


def all_values(variable: Variable, shape: tuple[int, ...]) -> Tensor:
    """All values of one row of a discrete local site, `(values, *shape)`.

    Raises:
        ValueError: naming the site, if there are too many.
    """
    with at_site(variable.name):
        values = supports.values_of(variable.distribution, shape)
    if values is None:
        raise ValueError(
            f"Site {variable.name!r}: a discrete local variable must have at most {supports.MOST_VALUES:,} values, as "
            f"Categorical and Bernoulli have, to be summed out, not those of {type(variable.distribution).__name__} of "
            f"the shape {shape}. Draw it from a guide, {{{variable.name!r}: Amortized(network, inputs=[...], "
            'family="counts")} or "categories", sum it out in the story, as a mixture does, or give a continuous one '
            "in its place."
        )
    return values


def draw_combination(log_weights: Tensor, key: Tensor) -> Tensor:
    """Draws a combination for each row, by the largest of Gumbel variables around its log weights.

    Args:
        log_weights: `(rows, number)`; one that is impossible has minus infinity.
        key: Of the draw.

    Returns:
        `(rows,)`.

    Example:
    >>> np.asarray(draw_combination(np.log(np.array([[1.0, 1e-30], [1e-30, 1.0]])), bdl.random.draw_key(0))).tolist()
    [0, 1]
    """
    noise = ops.cast(uniform(ops.shape(log_weights), of_examples(key)), log_weights.dtype)
    return ops.argmax(log_weights - ops.log(-ops.log(noise)), axis=-1)
