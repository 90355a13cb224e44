"""A control variate for Gaussian guides: it takes noise off the gradient and changes no expectation.

Let `u = m + L e` be a draw, f what its objective costs, and `g = L^T df/du` the gradient there in units of the guide. A
regression `b + C e` of g on the noise has known expectations: `E (b + C e) = b` and `E (b + C e) e^T = C`. So

    g - C e,     (g - b - C e) e^T + C

have those of `g` and `g e^T`, which are the gradients in m and L (both times L^T), whatever b and C are, as long as
they do not depend on this e. What they cancel is all of the noise where f is quadratic, and C is then `L^T (d2f/du2) L`
(Miller et al. 2017, arXiv 1705.07880; Geffner and Domke 2020, arXiv 2007.14634). Mirrored draws cancel the noise of the
gradient in m, but hardly that in L. Densities that stick the landing have C = I taken off, which is right of the
diagonal alone at the optimum of independent Gaussians.

b and C are variables, which the model's optimizer moves. The gradient of the least squares `|g - b - C e|^2 / 2` is
made of what flows back through the draw in any case: no further evaluation of the story is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
from keras import ops

from bdl.keras_internals import current_value
from bdl.random import Tensor
from bdl.svi.draws import Draws
from bdl.svi.guides import Guide
from bdl.svi.guides.gaussian import Gaussian

CONTROL_VARIATES = (None, "quadratic")


def check_control_variate(value: Any, num_samples: Any) -> str | None:
    """The argument `control_variate` of a model.

    Args:
        value: The argument.
        num_samples: Draws in a step.

    Raises:
        ValueError: if it is unknown, or draws have no noise.

    Example:
    >>> check_control_variate("quadratic", 1)
    'quadratic'
    """
    if value not in CONTROL_VARIATES:
        raise ValueError(f"`control_variate` must be 'quadratic' or None, not {value!r}.")
    if value is not None and isinstance(num_samples, str):
        raise ValueError(
            f"`control_variate` must be None with num_samples={num_samples!r}, not {value!r}: means of quadratics "
            "are exact there. Leave it out, or pass a number of draws."
        )
    return value


def controls_of(guides: Sequence[Guide], dtype_policy: Any) -> list[ControlVariate | None]:
    """A control variate for each Gaussian guide of global sites.

    Args:
        guides: Bound to their sites.
        dtype_policy: Of the variables.

    Raises:
        ValueError: if there is no such guide.
    """
    found = [
        ControlVariate(guide.size, name=f"control_variate_{place}", dtype=dtype_policy) if _is_gaussian(guide) else None
        for place, guide in enumerate(guides)
    ]
    if not any(found):
        kinds = sorted({type(guide).__name__ for guide in guides})
        raise ValueError(
            f"`control_variate` must be None where no global site has a guide that is one Gaussian, as here: {kinds}. "
            'Pass guide="mean_field" or "full_rank", or leave it out.'
        )
    return found


def taught(control: ControlVariate | None, draws: Draws, place: int, real: Tensor) -> Tensor:
    """The draws of a guide, from which its control variate learns if it has one.

    Args:
        control: That of the guide.
        draws: With distribution and noise of the guide; densities that stick get their gradient by the same draws.
        place: Number of the guide.
        real: Its draws, `(draws, size)`, as they are.
    """
    if control is None:
        return real
    family: Any = draws.families[place][0]
    real = control.taught(family, draws.noise[place])
    if family.sticks:
        draws.sticky[place] = real
    return real


def controlled(
    controls: Sequence[ControlVariate | None], guides: Sequence[Guide], draws: Draws, kl: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Divergences of global sites, with the gradients that control variates add.

    Args:
        controls: Of each guide, or None.
        guides: The guides.
        draws: Of all sites, taught.
        kl: By site, in nats.
    """
    for place, (guide, control) in enumerate(zip(guides, controls, strict=True)):
        if control is not None:
            real = ops.concatenate([draws.real[name] for name in guide.sizes], axis=-1)
            family: Any = draws.families[place][0]
            first = next(iter(guide.sizes))
            kl = {**kl, first: kl[first] + control.term(family, draws.noise[place], real)}
    return kl


def _is_gaussian(guide: Guide) -> bool:
    if guide.is_local or guide.follows_prior or guide.is_conjugate or guide.is_discrete:
        return False
    return isinstance(guide.distribution(), Gaussian)


class ControlVariate(keras.layers.Layer):
    """The regression `b + C e` of one guide.

    Args:
        size: Numbers in a draw of the guide. C has as many as their square.
        **kwargs: Of `keras.Layer`.

    Example:
    >>> ControlVariate(3).count_params()
    12
    """

    is_control_variate = True

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.level = self.add_weight(name="level", shape=(size,), initializer="zeros")
        self.slope = self.add_weight(name="slope", shape=(size, size), initializer="zeros")
        self.built = True

    def taught(self, family: Gaussian, noise: Tensor) -> Tensor:
        """Draws, which hand b and C the gradients `-g` and `-g e^T`: `(draws, size)`.

        Args:
            family: The guide's distribution.
            noise: e of each draw, `(draws, size)`.
        """
        moved = _moved(current_value(self.level)) + noise @ ops.transpose(_moved(current_value(self.slope)))
        held = ops.stop_gradient(family.factor)
        return family.draw(noise) - Gaussian(ops.zeros_like(moved), held, family.is_diagonal).draw(moved)

    def term(self, family: Gaussian, noise: Tensor, draws: Tensor) -> Tensor:
        """Zero, with the gradient of what the control variate adds to the mean cost of the draws, in nats: a scalar.

        Args:
            family: The guide's distribution.
            noise: e of each draw, `(draws, size)`.
            draws: Of `taught`, so that b and C get the gradients `b + C e` and `(b + C e) e^T`, too.
        """
        level, slope = (ops.stop_gradient(current_value(each)) for each in (self.level, self.slope))
        held = replace(family, factor=ops.stop_gradient(family.factor))
        mean, each = (-held.score(rows) for rows in (level[None], level + noise @ ops.transpose(slope)))  # L^-T (...)
        columns = ops.transpose(-held.score(ops.transpose(slope)))
        factor = ops.diagonal(columns) if family.is_diagonal else columns
        expected = ops.sum(mean[0] * _moved(family.mean)) + ops.sum(factor * _moved(family.factor))
        return expected - ops.sum(ops.stop_gradient(each) * _moved(draws)) / noise.shape[0]

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        return {**super().get_config(), "size": self.size}


def _moved(value: Tensor) -> Tensor:
    """Zeros with the gradient of a value."""
    return value - ops.stop_gradient(value)
