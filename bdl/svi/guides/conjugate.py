"""Guides of conjugate models: exponential families, whose steps are natural gradients and coordinate updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.arguments import check_positive_integer
from bdl.keras_internals import current_value
from bdl.protocols import NaturalVariables
from bdl.random import Tensor
from bdl.svi.guides.base import Guide
from bdl.svi.guides.exponential import KINDS, Exponential, Kind
from bdl.svi.supports import Above, Between, Simplex


class ConjugateFamily(Guide):
    """Base of guides of one site that has an exponential family.

    Args:
        family: `"dirichlet"`, `"gamma"` or `"beta"`: that of the site's prior.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if the family is another one, or the guide is for several sites.
    """

    is_conjugate = True

    def __init__(self, family: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if family not in KINDS:
            raise ValueError(f"`family` must be one of {sorted(KINDS)}, not {family!r}.")
        self.family = family

    @property
    def kind(self) -> Kind:
        """The family."""
        return KINDS[self.family]

    @property
    def num_points(self) -> int:
        """Points of the rule by which expectations are exact."""
        return self.kind.num_points

    @property
    def noise_size(self) -> int:
        """None: draws are not made of noise."""
        return 0

    @property
    def site(self) -> str:
        """Name of its site."""
        return next(iter(self.sizes))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the site's value, or of a row's."""
        return self.shapes[self.site]

    @property
    def values_shape(self) -> tuple[int, ...]:
        """Shape of its parameters."""
        return self.shape if self.family == "dirichlet" else (*self.shape, 2)

    def bind(self, sizes: Mapping[str, int], *args: Any, **kwargs: Any) -> None:
        """Makes the variables.

        Raises:
            ValueError: if there are several sites.
        """
        if len(sizes) > 1:
            raise ValueError(
                f"A guide of the family {self.family!r} must be for one site, not for {list(sizes)}. Pass "
                'guide={"<site>": Conjugate(...)}, one for each.'
            )
        super().bind(sizes, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "family": self.family}


@keras.saving.register_keras_serializable(package="bdl")
class Conjugate(ConjugateFamily):
    """An exponential family for a global site whose prior is of it, in a model that is conjugate given all else.

    A fit needs `bdl.optimizers.NaturalGradient`. A step computes no draws: the story runs at points by which the
    expectation of a likelihood that is linear in the family's statistics is exact, and so is its gradient. At the rate
    1 with the whole data, a step is the coordinate update of Bayes' rule; in batches it is stochastic variational
    inference. Draws of the posterior are true draws.

    A Dirichlet site has the one point `exp E[log x]` while it is fitted, which sums to less than one. So the likelihood
    must use the probabilities as they are, as a sum of counts times log probabilities does; a distribution that scales
    them to sum to one is refused when the story is traced. Categories of single words that a story sums out,
    `log sum_k share_k topic_kw`, are in this way at their best mean-field distribution.

    Of Gamma and Beta sites, entries of the site may not multiply each other: their points move together.

    Args:
        family: `"dirichlet"` over the last axis, `"gamma"`, or `"beta"`: that of the site's prior.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if the family is another one, or not the prior's.

    Source: Hoffman, Blei, Wang and Paisley 2013, "Stochastic variational inference", JMLR 14, section 2.

    Example:
    >>> guide = Conjugate("gamma")
    >>> guide.bind({"rate": 1}, shapes={"rate": ()})
    >>> guide.start_at(np.zeros(1), None)
    >>> np.asarray(guide.values)
    array([1., 1.], dtype=float32)
    """

    def make_variables(self, data: Any, given_size: int) -> None:
        """Makes the parameters."""
        self.values = self.add_weight(name="values", shape=self.values_shape, initializer="ones")

    def start_at(self, origin: np.ndarray, frame: np.ndarray | None) -> None:
        """Moves it around a start, with the weight of one observation for each parameter."""
        support = {"dirichlet": Simplex(), "gamma": Above(0.0), "beta": Between(0.0, 1.0)}[self.family]
        x = support.constrain(ops.convert_to_tensor(origin, dtype=self.values.dtype), self.shape)
        self.values.assign(self.kind.start(ops.convert_to_numpy(x)))

    def distribution(self, data: Any = None, given: Tensor | None = None) -> Exponential:
        """The distribution."""
        return Exponential(self.kind, self.shape, current_value(self.values))

    def natural_variables(self) -> list[NaturalVariables]:
        """The parameters."""
        return [NaturalVariables(self.values)]


@keras.saving.register_keras_serializable(package="bdl")
class ConjugateRows(ConjugateFamily):
    """An exponential family of each row for a local site, at its optimum for the globals: coordinate updates.

    It has no variables. The parameters of a row are computed anew from its data wherever they are asked for, `steps`
    updates from the prior: each is the prior's plus the gradient of the row's log likelihood in the mean statistics. So
    there is nothing to amortize, new rows need no further fit, and rows need no numbers. All global sites of the story
    must have `Conjugate` guides.

    Args:
        family: `"dirichlet"`, `"gamma"` or `"beta"`, that of the site's prior.
        steps: Coordinate updates.
        **kwargs: Of `keras.Layer`.

    Raises:
        ValueError: if an argument is of the wrong kind, or a global site has another guide.

    Source: Hoffman, Blei, Wang and Paisley 2013, "Stochastic variational inference", figure 6.

    Example:
    >>> ConjugateRows("dirichlet", steps=20).trainable_variables
    []
    """

    is_local = True

    def __init__(self, family: str, steps: int = 20, **kwargs: Any) -> None:
        super().__init__(family, **kwargs)
        self.steps = check_positive_integer(steps, "steps")

    def make_variables(self, data: Any, given_size: int) -> None:
        """Makes none."""

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "steps": self.steps}
