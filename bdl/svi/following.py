"""Draws of guides that follow the prior: the story runs up to their sites, and tells the prior of each."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from bdl.random import Tensor
from bdl.svi import supports
from bdl.svi.derivatives import in_graph
from bdl.svi.guides.gaussian import RealLine
from bdl.svi.guides.hierarchical import Conditional, Hierarchical
from bdl.svi.story import Observed, Variable, num_rows, run, support_of_site

if TYPE_CHECKING:
    from bdl.svi.estimators import Estimator

Reals = dict[str, Tensor]


def follow(
    estimator: Estimator, guide: Hierarchical, data: Any, known: Mapping[str, Tensor], noise: Tensor, is_unrolled: bool
) -> tuple[list[RealLine], Tensor]:
    """Draws of a guide's sites, given draws of other global sites.

    Args:
        estimator: That runs the story.
        guide: Of the sites.
        data: The batch.
        known: Draws of other sites by name, `(draws, numbers)`.
        noise: `(draws, size)`.
        is_unrolled: Whether the runs of the story stand one after the other, as gradients need; otherwise a loop is
            compiled, for many draws.

    Returns:
        The distribution of each draw, or one of all together for each; and the draws, `(draws, size)`.
    """
    number = noise.shape[0]
    if is_unrolled or estimator.networks or keras.backend.backend() == "torch":
        draws = [{name: each[place] for name, each in known.items()} for place in range(number)]
        families = [_conditional(estimator, guide, data, each, noise[place]) for place, each in enumerate(draws)]
        return list(families), ops.stack([family.draw(noise[place]) for place, family in enumerate(families)])

    def parts(data: Any, known: Reals, noise: Tensor) -> Any:
        def one(each: Any) -> tuple[Tensor, ...]:
            family = _conditional(estimator, guide, data, *each)
            return family.mean, family.scale

        return ops.map(one, (known, noise))

    # A partial, for TensorFlow counts the traces of a code object, and warns at the fifth.
    mean, scale = in_graph(functools.partial(parts))(data, dict(known), noise)
    family = Conditional(mean, scale, mean, scale)
    return [family] * number, family.draw(noise)


def _conditional(estimator: Estimator, guide: Hierarchical, data: Any, known: Reals, noise: Tensor) -> Conditional:
    """The distribution of all sites of a guide for one draw: of each given those before it, too."""
    found: dict[str, Conditional] = {}
    rows = num_rows(data)

    def answer(variable: Variable) -> Tensor:
        name = variable.name
        if isinstance(variable, Observed):
            return variable.value
        site = estimator.sites[name]
        if site.kind == "enumerated":  # which no global one depends on either
            return estimator.combinations.value(variable, estimator.combinations.first(rows))
        support = support_of_site(variable, site)
        if name in guide.sizes:
            found[name] = guide.conditional(name, _prior(variable, site.shape, estimator.dtype))
            start, stop = guide.coordinates(name)
            real = found[name].draw(noise[start:stop])
        elif name in known:
            real = known[name]
        else:  # a local site, which no global one depends on
            real = ops.zeros((rows, site.size), dtype=estimator.dtype)
        return support.constrain(real, site.shape)

    last = [name for name in estimator.sites if name in guide.sizes][-1]
    with supports.unchecked():
        run(estimator.story, data, answer, estimator.networks, until=last)
    parts = [(one.mean, one.scale, one.held_mean, one.held_scale) for one in (found[name] for name in guide.sizes)]
    return Conditional(*(ops.concatenate(each) for each in zip(*parts, strict=True)))


def _prior(variable: Any, shape: tuple[int, ...], dtype: str) -> tuple[Tensor, Tensor] | None:
    """Means and standard deviations of a site's prior on the real line, `(size,)` each; None if it is no Gaussian."""
    prior = supports.as_normal(variable.distribution)
    if prior is None:
        return None
    mean, scale = (
        ops.reshape(ops.broadcast_to(ops.convert_to_tensor(each, dtype=dtype), shape), (-1,)) for each in prior
    )
    return mean, scale
