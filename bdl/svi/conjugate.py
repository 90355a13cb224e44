"""Where conjugate guides stand when a story runs: points in training, draws in results, coordinate updates of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from bdl.random import Tensor
from bdl.svi import supports
from bdl.svi.derivatives import values_and_gradient
from bdl.svi.guides.conjugate import Conjugate, ConjugateFamily, ConjugateRows
from bdl.svi.guides.exponential import Exponential
from bdl.svi.story import Observed, Site, Variable, num_rows, support_of_site

if TYPE_CHECKING:
    from bdl.svi.estimators import Estimator


def value_of(variable: Variable, site: Site, numbers: Tensor) -> Tensor:
    """The value of a latent site.

    Args:
        variable: As the story tells it.
        site: As it was traced.
        numbers: On the real line, `(..., size)`; of a Dirichlet's point the logarithms of all entries, which are more.
    """
    if is_point(site, numbers):
        return ops.reshape(ops.exp(numbers), (*tuple(ops.shape(numbers))[:-1], *site.shape))
    return support_of_site(variable, site).constrain(numbers, site.shape)


def is_point(site: Site, numbers: Tensor) -> bool:
    """Whether numbers are a Dirichlet's point, which is on no simplex."""
    return site.size != 0 and numbers.shape[-1] != site.size


def placed(
    estimator: Estimator, guide: ConjugateFamily, data: Any, number: int, key: Tensor, is_drawn: bool
) -> tuple[Exponential, Tensor]:
    """The distribution of a conjugate guide, and its points or draws on the real line, `(number, ..., size)`.

    Args:
        estimator: That runs the story.
        guide: The guide.
        data: The batch.
        number: How many.
        key: Of draws.
        is_drawn: Whether draws are asked for, and not the points of training.
    """
    family: Any = settled(estimator, guide, data) if isinstance(guide, ConjugateRows) else guide.distribution(data)
    return family, ops.stop_gradient(family.sample(number, key)) if is_drawn else family.points(number)


def settled(estimator: Estimator, guide: ConjugateRows, data: Any) -> Exponential:
    """The rows' distributions after their coordinate updates, as constants.

    Raises:
        ValueError: if a global guide is not conjugate.
    """
    wrong = [name for each in estimator.guides if not isinstance(each, ConjugateFamily) for name in each.sizes]
    if wrong:
        raise ValueError(
            f"All sites must have conjugate guides beside ConjugateRows, which {wrong} have not. Give them "
            "Conjugate(...), or guide the local site by Amortized or PerRow."
        )
    families = {each.site: each.distribution(data) for each in estimator.guides if isinstance(each, Conjugate)}
    number = max(each.num_points for each in estimator.guides if isinstance(each, ConjugateFamily))
    points = {name: ops.stop_gradient(family.points(number)) for name, family in families.items()}
    rows = num_rows(data)

    def visits(at: Tensor, point: int) -> list[Any]:
        real = {**{name: each[point] for name, each in points.items()}, guide.site: at}
        return estimator.visit(data, real, rows=rows)

    def log_likelihood(mean: Tensor) -> Tensor:
        """Of rows, at mean statistics `(rows, numbers)`."""
        family = [ops.reshape(each, (rows, -1)) for each in guide.kind.points(_unflat(mean))]
        runs = [visits(family[point % len(family)], point) for point in range(number)]
        return sum(visit.log_prob() for run in runs for visit in run if isinstance(visit.variable, Observed)) / number

    def _unflat(mean: Tensor) -> Tensor:
        return ops.reshape(mean, (-1, *guide.values_shape))

    with keras.StatelessScope():
        size = int(np.prod(guide.shape))
        first = visits(ops.zeros((rows, size), dtype=estimator.dtype), 0)
        site = next(visit for visit in first if visit.name == guide.site)
        prior = ops.stop_gradient(prior_of(site.variable, guide, estimator.dtype))
        prior = ops.broadcast_to(prior, (rows, *guide.values_shape))

        def update(step: Any, values: Tensor) -> Tensor:
            mean = ops.reshape(guide.kind.mean(values), (rows, -1))
            _, slopes = values_and_gradient(log_likelihood, mean)
            moved, least = prior + ops.reshape(slopes, ops.shape(prior)), prior / 16
            return ops.where(moved < least, least, moved)

        values = ops.fori_loop(0, guide.steps, update, prior + 1.0)
    return Exponential(guide.kind, guide.shape, ops.stop_gradient(values))


def prior_of(variable: Variable, guide: ConjugateFamily, dtype: str) -> Tensor:
    """The parameters of a site's prior, in the layout of the guide's.

    Raises:
        ValueError: if the prior is of another family.
    """
    found = supports.exponential_parameters(variable.distribution, guide.family)
    if found is None:
        raise ValueError(
            f"The prior of {variable.name!r} must be of the family of its guide, {guide.family!r}, not "
            f"{type(variable.distribution).__name__}."
        )
    parts = [ops.convert_to_tensor(each, dtype=dtype) for each in found]
    if len(parts) == 1:
        return parts[0]
    shape = guide.shape
    own = [ops.broadcast_to(each, np.broadcast_shapes(tuple(each.shape), shape)) for each in parts]
    return ops.stack(own, axis=-1)


def check_conjugate(estimator: Estimator, data: Any) -> None:
    """Refuses conjugate guides of sites in which the likelihood is not linear in the family's statistics.

    At two distributions with the same other sites the gradient of the log likelihood in the mean statistics must be the
    same. A Dirichlet's must not be zero along its scale, where the likelihood scales probabilities itself.

    Raises:
        ValueError: naming the site.
    """
    guides = [each for each in estimator.guides if isinstance(each, Conjugate)]
    base: Mapping[str, Exponential] = {each.site: each.distribution(data) for each in guides}
    known = estimator.draws(data, np.zeros(2, "uint32"), estimator.num_draws).real if guides else {}
    if guides:
        told = {
            visit.name: visit.variable for visit in estimator.visit(data, {n: each[0] for n, each in known.items()})
        }
    for guide in guides:
        prior_of(told[guide.site], guide, estimator.dtype)

        def slopes(values: Tensor, guide: Conjugate = guide) -> np.ndarray:
            def total(mean: Tensor) -> Tensor:
                points = guide.kind.points(ops.reshape(mean, guide.values_shape))
                runs = []
                for place in range(estimator.num_draws):
                    real = {name: each[place] for name, each in known.items()}
                    real[guide.site] = ops.reshape(points[place % len(points)], (-1,))
                    runs.append(estimator.visit(data, real))
                found = [visit.log_prob() for run in runs for visit in run if isinstance(visit.variable, Observed)]
                return ops.reshape(sum(ops.sum(each) for each in found), (1,)) / len(runs)

            mean = ops.reshape(guide.kind.mean(values), (1, -1))
            return ops.convert_to_numpy(values_and_gradient(total, mean)[1])[0]

        values = ops.stop_gradient(base[guide.site].values)
        one = slopes(values)
        size = np.abs(one).max()
        if guide.family == "dirichlet":
            sums = one.reshape(-1, guide.shape[-1]).sum(-1)
            is_wrong = size > 0 and (np.abs(sums).max() < 1e-3 * size or one.min() < -1e-3 * size)
            why = "scales its probabilities to sum to one, or does not count them"
            fix = "Write its log density as a sum of counts times logarithms of the probabilities as they are."
        else:
            is_wrong = np.abs(slopes(2.0 * values + 1.0) - one).max() > 1e-2 * (size + 1e-6)
            why = f"is not linear in the statistics of its family, {guide.family!r}"
            fix = "Give the site a Gaussian guide on the real line, such as FullRank()."
        if is_wrong:
            raise ValueError(f"The likelihood must be conjugate to the site {guide.site!r}, and it {why}. {fix}")
