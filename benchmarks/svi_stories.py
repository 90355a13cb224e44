"""Ten models of the public posterior database (github.com/stan-dev/posteriordb) as stories of `bdl.svi`.

Each story runs on TensorFlow with the distributions of TensorFlow Probability and on JAX with NumPyro's. Sites have the
names of the reference draws. Priors that the database's models leave out are flat on the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.svi import Flat, Global, Observed
from bdl.svi.supports import Ordered

Arrays = dict[str, np.ndarray]
Story = Callable[..., Iterator[Any]]

IS_JAX = keras.backend.backend() == "jax"
if IS_JAX:
    import numpyro.distributions as dist
else:
    import tensorflow_probability as tfp

    dist = tfp.distributions


def half_cauchy(scale: float) -> Any:
    """A Cauchy distribution's positive half."""
    return dist.HalfCauchy(scale) if IS_JAX else dist.HalfCauchy(0.0, scale)


def positive_normal(mean: Any, scale: Any) -> Any:
    """A normal distribution cut off at zero."""
    return dist.TruncatedNormal(mean, scale, low=0.0) if IS_JAX else dist.TruncatedNormal(mean, scale, 0.0, np.inf)


def scan(step: Callable[[Any], tuple[Any, Any]], first: Any, length: int) -> Any:
    """States after each step; XLA can differentiate TensorFlow's own scan, which says how long it is, not Keras'."""
    if IS_JAX:
        return ops.scan(step, first, length=length)[1]
    import tensorflow as tf

    return tf.scan(lambda state, _: step(state)[0], tf.range(length), initializer=first)


class OrderedNormal:
    """Independent normal numbers that are sorted; the density is known up to a constant.

    Args:
        scale: Standard deviation of the numbers.
        size: How many.
    """

    support = Ordered()
    batch_shape: tuple[int, ...] = ()

    def __init__(self, scale: float, size: int) -> None:
        self.scale, self.event_shape = scale, (size,)

    def log_prob(self, value: Any) -> Any:
        """Log density, without its constant."""
        return -0.5 * ops.sum((value / self.scale) ** 2, axis=-1)

    def sample(self, num_samples: int, key: Any) -> Any:
        """Draws."""
        from bdl.random import normal

        return ops.sort(self.scale * normal((num_samples, *self.event_shape), key), axis=-1)


def kidiq(data: Any) -> Iterator[Any]:
    """Test scores of children, by schooling and IQ of their mothers: scales apart by 100, correlations near 1."""
    beta = yield Global("beta", Flat(shape=(4,)))
    sigma = yield Global("sigma", half_cauchy(2.5))
    school, iq = data["mom_hs"], data["mom_iq"]
    mean = beta[0] + beta[1] * school + beta[2] * iq + beta[3] * school * iq
    yield Observed("kid_score", dist.Normal(mean, sigma), data["kid_score"])


def earnings(data: Any) -> Iterator[Any]:
    """Logarithms of earnings by height, which is not centred."""
    beta = yield Global("beta", Flat(shape=(2,)))
    sigma = yield Global("sigma", Flat("positive"))
    yield Observed("log_earn", dist.Normal(beta[0] + beta[1] * data["height"], sigma), data["log_earn"])


def nes(data: Any) -> Iterator[Any]:
    """Party identification, on a scale of seven, by eight features of a voter."""
    beta = yield Global("beta", Flat(shape=(9,)))
    sigma = yield Global("sigma", Flat("positive"))
    yield Observed("partyid7", dist.Normal(data["x"] @ beta[:, None], sigma), data["y"][:, None])


def autoregression(data: Any) -> Iterator[Any]:
    """A series by its last five values."""
    alpha = yield Global("alpha", dist.Normal(0.0, 10.0))
    beta = yield Global("beta", dist.Normal(np.zeros(5, "float32"), 10.0))
    sigma = yield Global("sigma", half_cauchy(2.5))
    yield Observed("y", dist.Normal(alpha + data["lags"] @ beta[:, None], sigma), data["y"][:, None])


def linear(data: Any) -> Iterator[Any]:
    """A linear regression with precise data."""
    beta = yield Global("beta", dist.Normal(np.zeros(5, "float32"), 10.0))
    sigma = yield Global("sigma", dist.HalfNormal(10.0))
    yield Observed("y", dist.Normal(data["x"] @ beta[:, None], sigma), data["y"][:, None])


def kilpisjarvi(data: Any) -> Iterator[Any]:
    """Summer temperatures by year, which is not centred: intercept and slope correlate by nearly -1."""
    alpha = yield Global("alpha", dist.Normal(9.31290322580645, 100.0))
    beta = yield Global("beta", dist.Normal(0.0, 0.0333333333333333))
    sigma = yield Global("sigma", Flat("positive"))
    yield Observed("y", dist.Normal(alpha + beta * data["x"], sigma), data["y"])


def mixture(data: Any) -> Iterator[Any]:
    """A mixture of two normal distributions, in the order of their means."""
    mu = yield Global("mu", OrderedNormal(2.0, 2))
    sigma = yield Global("sigma", dist.HalfNormal(np.full(2, 2.0, "float32")))
    theta = yield Global("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=ops.stack([theta, 1.0 - theta]))
    yield Observed("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), data["y"])


def garch(data: Any) -> Iterator[Any]:
    """A series whose variance follows its last value and its last variance: `(1, T)`, and .5 before it begins."""
    y = data["y"]
    mu = yield Global("mu", Flat())
    alpha0 = yield Global("alpha0", Flat("positive"))
    alpha1 = yield Global("alpha1", Flat("unit_interval"))
    beta1 = yield Global("beta1", Flat(("interval", 0.0, 1.0 - alpha1)))
    shock = alpha0 + alpha1 * (y[:, :-1] - mu) ** 2
    shock = ops.concatenate([ops.full_like(shock[:, :1], 0.5**2), shock], axis=1)
    # variance_t = shock_t + beta1 variance_(t-1), written out: sum over s <= t of beta1^(t - s) shock_s.
    lags = np.subtract.outer(np.arange(y.shape[1]), np.arange(y.shape[1])).astype("float32")
    powers = np.float32(lags >= 0) * ops.exp(np.maximum(lags, 0) * ops.log(beta1))
    variance = shock @ ops.transpose(powers)
    yield Observed("y", dist.Normal(mu, ops.sqrt(variance)), y)


def eight_schools(data: Any) -> Iterator[Any]:
    """Effects of coaching in eight schools, non-centred."""
    mu = yield Global("mu", dist.Normal(0.0, 5.0))
    tau = yield Global("tau", half_cauchy(5.0))
    raw = yield Global("theta_trans", dist.Normal(np.zeros(8, "float32"), 1.0))
    yield Observed("y", dist.Normal(mu + tau * raw, data["sigma"]), data["y"])


STEPS_A_YEAR = 5
"""Runge-Kutta steps."""


def lotka_volterra(data: Any) -> Iterator[Any]:
    """Twenty years of pelts of hares and lynxes: one row."""
    centre, spread = np.array([[1.0, 0.05] * 2, [0.5, 0.05] * 2], "float32")
    theta = yield Global("theta", positive_normal(centre, spread))
    z_init = yield Global("z_init", dist.LogNormal(np.full(2, np.log(10.0), "float32"), 1.0))
    sigma = yield Global("sigma", dist.LogNormal(np.full(2, -1.0, "float32"), 1.0))

    growth = ops.stack([theta[0], -theta[2]])
    coupling = ops.stack([-theta[1], theta[3]])

    def slope(z: Any) -> Any:
        """Of the logarithms of prey and predators."""
        return growth + coupling * ops.exp(z[::-1])

    def move(z: Any, _: Any = None) -> tuple[Any, Any]:
        step = 1.0 / STEPS_A_YEAR
        k1 = slope(z)
        k2 = slope(z + 0.5 * step * k1)
        k3 = slope(z + 0.5 * step * k2)
        z = z + step / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + slope(z + step * k3))
        return z, z

    first = ops.log(z_init)
    rest = scan(move, first, 20 * STEPS_A_YEAR)[STEPS_A_YEAR - 1 :: STEPS_A_YEAR]
    logarithms = ops.concatenate([first[None], rest])
    yield Observed("pelts", dist.LogNormal(logarithms[None], sigma), data["pelts"])


@dataclass(frozen=True)
class Model:
    """A model, and how its data and its reference draws are named.

    Args:
        name: In the database.
        story: The model.
        rows: From the database's data to the story's.
        also: From draws by site to further quantities of which there are reference draws.
    """

    name: str
    story: Story
    rows: Callable[[Arrays], Arrays]
    also: Callable[[Arrays], Arrays] = lambda draws: {}

    def numbers(self, draws: Arrays, names: list[str]) -> np.ndarray:
        """Draws of the numbers of these names, such as `"beta[1]"`: `(draws, names)`."""
        known = {**draws, **self.also(draws)}
        columns = []
        for name in names:
            site, _, index = name.partition("[")
            columns.append(known[site][:, int(index.rstrip("]")) - 1] if index else known[site])
        return np.stack(columns, axis=1).astype("float64")


def columns(*names: str) -> Callable[[Arrays], Arrays]:
    """Takes some of the database's data as they are."""
    return lambda data: {name: data[name] for name in names}


def _of_nes(data: Arrays) -> Arrays:
    ages = [data["age_discrete"] == age for age in (2, 3, 4)]
    rest = [data["educ1"], data["gender"], data["income"]]
    x = np.stack([np.ones(len(rest[0])), data["real_ideo"], data["race_adj"], *ages, *rest], axis=1)
    return {"x": x, "y": data["partyid7"]}


def _of_series(data: Arrays) -> Arrays:
    y, order = data["y"], int(data["K"])
    return {"lags": np.stack([y[order - lag : len(y) - lag] for lag in range(1, order + 1)], axis=1), "y": y[order:]}


MODELS = {
    "kidiq": Model("kidiq-kidscore_interaction", kidiq, columns("mom_hs", "mom_iq", "kid_score")),
    "earnings": Model(
        "earnings-logearn_height",
        earnings,
        lambda data: {"height": data["height"], "log_earn": np.log(data["earn"])},
    ),
    "nes": Model("nes1980-nes", nes, _of_nes),
    "arK": Model("arK-arK", autoregression, _of_series),
    "sblrc": Model("sblrc-blr", linear, lambda data: {"x": data["X"], "y": data["y"]}),
    "kilpisjarvi": Model("kilpisjarvi_mod-kilpisjarvi", kilpisjarvi, columns("x", "y")),
    "mixture": Model("low_dim_gauss_mix-low_dim_gauss_mix", mixture, columns("y")),
    "garch": Model("garch-garch11", garch, lambda data: {"y": data["y"][None]}),
    "eight_schools": Model(
        "eight_schools-eight_schools_noncentered",
        eight_schools,
        columns("y", "sigma"),
        lambda draws: {"theta": draws["mu"][:, None] + draws["tau"][:, None] * draws["theta_trans"]},
    ),
    "lotka_volterra": Model(
        "hudson_lynx_hare-lotka_volterra",
        lotka_volterra,
        lambda data: {"pelts": np.concatenate([data["y_init"][None], data["y"]])[None]},
    ),
}
