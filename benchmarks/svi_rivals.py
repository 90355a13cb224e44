"""The automatic guides of NumPyro and of TensorFlow Probability on stories of `bdl.svi`, at the same budget.

Both take 2,000 steps of Adam from 1e-2 with a cosine decay, eight draws a step, and end with the last iterate, as their
own fits do. `default` is the start that they choose; `mode` is the mode of the posterior density on the real line,
which bdl finds for them.

NumPyro (on JAX) runs a story as a NumPyro model: each site is a `numpyro.sample`, a flat prior an `ImproperUniform`.
TensorFlow Probability has no automatic guide for flat priors; its surrogates are fitted to the log density on the real
line with bdl's maps onto the supports, as its users do with bijectors of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from svi_reference import NUM_DRAWS, NUM_SAMPLES, NUM_STEPS, NUM_WEIGHTS, RATE

from bdl.keras_internals import without_gradients
from bdl.svi import SVI, Flat, Observed
from bdl.svi.derivatives import in_graph
from bdl.svi.rows import as_tensors
from bdl.svi.story import run
from bdl.svi.supports import Above, Ordered, Real

Result = tuple[dict[str, np.ndarray], np.ndarray | None, float]
"""Draws by site, log importance weights, and seconds of the fit."""


def of_numpyro(story: Any, rows: Any, guide: str, start: str, seed: int) -> Result:
    """A fit with one of NumPyro's automatic guides."""
    import jax
    import numpyro
    from numpyro import infer
    from numpyro.infer import Trace_ELBO, autoguide, init_to_value

    kinds = {
        "mean_field": autoguide.AutoNormal,
        "full_rank": autoguide.AutoMultivariateNormal,
        "laplace": autoguide.AutoLaplaceApproximation,
    }
    data = {name: jax.numpy.asarray(value, "float32") for name, value in rows.items()}
    model = numpyro_model(story, data)
    settings = {"init_loc_fn": init_to_value(values=mode_of(story, rows))} if start == "mode" else {}

    def cosine(step: Any) -> Any:
        return RATE * 0.5 * (1.0 + jax.numpy.cos(np.pi * step / NUM_STEPS))

    began = time.perf_counter()
    automatic = kinds[guide](model, **settings)
    svi = infer.SVI(model, automatic, numpyro.optim.Adam(cosine), Trace_ELBO(num_particles=NUM_SAMPLES))
    params = svi.run(jax.random.key(seed), NUM_STEPS, progress_bar=False).params
    jax.block_until_ready(params)
    seconds = time.perf_counter() - began
    draws = automatic.sample_posterior(jax.random.key(1000 + seed), params, sample_shape=(NUM_DRAWS,))
    draws = {name: np.asarray(value, "float64") for name, value in draws.items()}
    if guide == "laplace":  # while it is fitted it is a point, which has no weights
        return draws, None, seconds
    keys = jax.random.split(jax.random.key(2000 + seed), NUM_WEIGHTS)
    single = jax.jit(jax.vmap(lambda key: -Trace_ELBO().loss(key, params, model, automatic)))
    return draws, np.asarray(single(keys), "float64"), seconds


def numpyro_model(story: Any, data: Any) -> Callable[[], None]:
    """A story as a NumPyro model."""
    import numpyro
    import numpyro.distributions as dist

    def answer(variable: Any) -> Any:
        prior = variable.distribution
        if isinstance(variable, Observed):
            return numpyro.sample(variable.name, prior, obs=variable.value)
        if isinstance(prior, dist.Distribution):
            return numpyro.sample(variable.name, prior)
        shape = (*prior.batch_shape, *prior.event_shape)
        value = numpyro.sample(variable.name, dist.ImproperUniform(_constraint(prior.support), (), shape))
        if not isinstance(prior, Flat):
            numpyro.factor(f"{variable.name}_density", prior.log_prob(value))
        return value

    def model() -> None:
        run(story, data, answer)

    return model


def _constraint(support: Any) -> Any:
    """NumPyro's name of a support of bdl."""
    import jax.numpy as jnp
    from numpyro.distributions import constraints

    kinds = {Real: constraints.real, Above: constraints.positive, Ordered: constraints.ordered_vector}
    if type(support) in kinds:
        return kinds[type(support)]
    low, high = (support.constrain(jnp.array([u]), ()) for u in (-100.0, 100.0))  # a float off the bounds
    return constraints.interval(low, high)


def mode_of(story: Any, rows: Any) -> dict[str, np.ndarray]:
    """The mode of the posterior density on the real line, in the values' own units."""
    model = SVI(story, "delta", start="map", seed=0)
    model.compile(keras.optimizers.Adam(0.0))
    model.fit(rows, batch_size="all", steps=1, verbose=0)
    return {name: values[0] for name, values in model.posterior(num_samples=1).items()}


def of_tfp(story: Any, rows: Any, guide: str, start: str, seed: int) -> Result:
    """A fit with one of TensorFlow Probability's surrogate posteriors."""
    import tensorflow as tf
    import tensorflow_probability as tfp
    import tf_keras

    model = SVI(story, start="map" if start == "mode" else "prior", seed=0)
    model.compile(keras.optimizers.Adam(0.0))
    model.fit(rows, batch_size="all", steps=1, verbose=0)
    whole, joint_guide, estimator = as_tensors(rows, "float32"), model.guides[0], model.estimator
    mode = tf.constant(ops.convert_to_numpy(joint_guide.origin), "float32")

    def log_joint(u: Any) -> Any:
        return estimator.log_joint(whole, _by_site(joint_guide, u))

    tf.random.set_seed(seed)
    began = time.perf_counter()
    build = tfp.experimental.vi
    if guide == "mean_field":
        first = {"initial_parameters": {"loc": mode, "scale": 1e-2}} if start == "mode" else {}
        surrogate = build.build_factored_surrogate_posterior(event_shape=[joint_guide.size], **first)
    else:
        base = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), joint_guide.size)
        first = {"initial_unconstrained_loc_fn": lambda shape, dtype, seed: mode} if start == "mode" else {}
        surrogate = build.build_affine_surrogate_posterior_from_base_distribution(base, operators="tril", **first)
    tfp.vi.fit_surrogate_posterior(
        lambda draws: tf.stack([log_joint(u) for u in tf.unstack(draws, NUM_SAMPLES)]),
        surrogate,
        tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(RATE, NUM_STEPS)),
        NUM_STEPS,
        sample_size=NUM_SAMPLES,
        jit_compile=True,
        seed=seed,
    )
    seconds = time.perf_counter() - began
    u = surrogate.sample(NUM_DRAWS, seed=1000 + seed)

    def one(u: Any) -> Any:
        real = _by_site(joint_guide, u)
        visits = {visit.name: visit.value for visit in estimator.visit(whole, real)}
        return {name: visits[name] for name in model.latent} | {"_joint": estimator.log_joint(whole, real)}

    with without_gradients():
        found = in_graph(lambda u: ops.map(one, u))(u)
    draws = {name: ops.convert_to_numpy(value).astype("float64") for name, value in found.items()}
    log_weights = draws.pop("_joint") - surrogate.log_prob(u).numpy().astype("float64")
    return draws, log_weights[:NUM_WEIGHTS], seconds


def _by_site(guide: Any, u: Any) -> dict[str, Any]:
    """Numbers on the real line by site."""
    parts = {name: guide.coordinates(name) for name in guide.sizes}
    return {name: u[begin:end] for name, (begin, end) in parts.items()}
