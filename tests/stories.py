"""Stories with known answers, and distributions on `keras.ops` for them, which need no library."""

import keras
import numpy as np
from keras import ops
from scipy import stats

from bdl import random
from bdl.svi import SVI, Global, Local, Observed
from bdl.svi.supports import Above, Real


class Normal:
    """A normal distribution of a batch of numbers."""

    support = Real()
    event_shape = ()

    def __init__(self, loc, scale):
        self.loc, self.scale = ops.convert_to_tensor(loc, "float32"), ops.convert_to_tensor(scale, "float32")
        self.batch_shape = tuple((self.loc + self.scale).shape)

    def log_prob(self, value):
        return -0.5 * ((value - self.loc) / self.scale) ** 2 - ops.log(self.scale) - 0.5 * np.log(2 * np.pi)

    def sample(self, num_samples, key):
        return self.loc + self.scale * random.normal((num_samples, *self.batch_shape), key)


class HalfNormal(Normal):
    """The absolute value of a normal one around zero."""

    support = Above(0.0)

    def __init__(self, scale):
        super().__init__(0.0, scale)

    def log_prob(self, value):
        return super().log_prob(value) + np.log(2.0)

    def sample(self, num_samples, key):
        return ops.abs(super().sample(num_samples, key))


class Beta22:
    """Beta(2, 2), as a support of its own shows."""

    event_shape = ()
    batch_shape = ()

    def __init__(self, support):
        self.support = support

    def log_prob(self, value):
        return np.log(6.0) + ops.log(value) + ops.log1p(-value)

    def sample(self, num_samples, key):
        return ops.full((num_samples,), 0.5)


class Categorical:
    """One of several values, of a batch of logits."""

    support = None
    event_shape = ()

    def __init__(self, logits):
        self.log_probs = ops.log_softmax(ops.convert_to_tensor(logits), axis=-1)
        self.batch_shape = tuple(self.log_probs.shape[:-1])
        self.values = np.arange(self.log_probs.shape[-1], dtype="int32")

    def log_prob(self, value):
        chosen = ops.one_hot(ops.cast(value, "int32"), len(self.values), dtype=self.log_probs.dtype)
        return ops.sum(ops.where(chosen > 0, self.log_probs, 0.0), axis=-1)

    def sample(self, num_samples, key):
        noise = random.uniform((num_samples, *self.log_probs.shape), key)
        return ops.argmax(self.log_probs - ops.log(-ops.log(noise)), axis=-1)


class Binomial:
    """Counts out of `total`, of a batch of probabilities."""

    event_shape = ()

    def __init__(self, total, probability):
        self.total, self.probability = total, probability
        self.batch_shape = tuple(probability.shape)

    support = None

    def sample(self, num_samples, key):
        raise NotImplementedError

    def log_prob(self, value):
        log_choose = _log_gamma(self.total + 1.0) - _log_gamma(value + 1.0) - _log_gamma(self.total - value + 1.0)
        return log_choose + value * ops.log(self.probability) + (self.total - value) * ops.log1p(-self.probability)


def _log_gamma(x):
    """Of positive whole numbers up to 21, by a table."""
    from scipy.special import gammaln

    table = ops.convert_to_tensor(gammaln(np.maximum(np.arange(22), 1)), "float32")
    return ops.take(table, ops.cast(x, "int32"), axis=0)


@keras.saving.register_keras_serializable(package="tests")
def level(data):
    """A mean with a conjugate prior: posterior and evidence in closed form."""
    mean = yield Global("mean", Normal(0.5, 3.0))
    yield Observed("y", Normal(mean, 1.0), data["y"])


def level_posterior(y):
    """Mean, standard deviation and log evidence of `level`."""
    precision = 1 / 9 + len(y)
    covariance = np.eye(len(y)) + 9.0
    evidence = stats.multivariate_normal(np.full(len(y), 0.5), covariance).logpdf(y)
    return (0.5 / 9 + y.sum()) / precision, precision**-0.5, evidence


def level_at_the_posterior(y):
    """A model of `level` whose guide is the posterior."""
    model = SVI(level, "full_rank", seed=0)
    model.trace_on({"y": y})
    mean, sd, _ = level_posterior(y.astype("float64"))
    model.guide_of("mean").start_at(np.array([mean]), np.array([[sd]]))
    return model


@keras.saving.register_keras_serializable(package="tests")
def groups(data):
    """A mean, and values around it for each row; all Gaussian."""
    mean = yield Global("mean", Normal(0.0, 2.0))
    code = yield Local("code", Normal(mean, 1.5))
    yield Observed("y", Normal(code, 0.5), data["y"])


def groups_evidence(y):
    """Log evidence of `groups`."""
    covariance = (1.5**2 + 0.5**2) * np.eye(len(y)) + 4.0
    return stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)


@keras.saving.register_keras_serializable(package="tests")
def spread(data):
    """A mean and a scale."""
    mean = yield Global("mean", Normal(0.0, 5.0))
    scale = yield Global("scale", HalfNormal(3.0))
    yield Observed("y", Normal(mean, scale), data["y"])
