"""A story with two discrete sites, one after the other, told by tables, and exact moments of its score's gradients."""

import itertools
from dataclasses import dataclass

import keras
import numpy as np
from distribution_libraries import array, single
from gradients import gradients
from keras import ops
from stories import Categorical

from bdl import random
from bdl.elbo import elbo_parts
from bdl.keras_internals import compiled
from bdl.svi import Categories, Guide, Local, Observed
from bdl.svi.estimators import Estimator
from bdl.svi.story import Site
from bdl.svi.supports import Real

NUM_ROWS = 4000
SITES = {"a": Site("a", "local", (), 1, 3, True), "b": Site("b", "local", (), 1, 2, True)}
LOGITS = [np.array([0.3, -0.4, 0.9]), np.array([-0.2, 0.5])]  # of the guides


class Given(Guide):
    """A distribution for each row, of tensors that a test differentiates in: each row is a draw of the gradient."""

    is_local = True
    of_rows = None

    def __init__(self, name, size, is_discrete):
        super().__init__()
        self.sizes, self.is_discrete = {name: size}, is_discrete

    def distribution(self, data=None, given=None):
        return self.of_rows

    def features(self, data, given=None, network=None):
        return ops.ones((NUM_ROWS, 1))


class Told:
    """Log densities that are given."""

    support, event_shape = Real(), ()

    def __init__(self, log_probs):
        self.log_probs, self.batch_shape = log_probs, tuple(log_probs.shape)

    def log_prob(self, value):
        return self.log_probs

    def sample(self, num_samples, key):
        raise NotImplementedError


@dataclass(frozen=True)
class Switches:
    """Tables of log densities, in the order in which the story comes to the sites.

    `a` has three values, `x` is seen of it, `b` has two, which may depend on `a`, and `y` is seen of both.
    """

    a: np.ndarray  # (3,)
    x: np.ndarray  # (3,)
    b: np.ndarray  # (3, 2)
    y: np.ndarray  # (3, 2)

    def story(self, data):
        a = yield Local("a", Categorical(single(self.a)))
        a = ops.cast(a, "int32")
        yield Observed("x", Told(ops.take(single(self.x), a)), data)
        b = yield Local("b", Categorical(ops.take(single(self.b), a, axis=0)))
        yield Observed("y", Told(ops.take(single(self.y.ravel()), 2 * a + ops.cast(b, "int32"))), data)

    def gradients(self, num_samples, temperature=1.0, baselines=None, seed=0):
        """Of each row, in the logits of both guides: `(rows, 3)` and `(rows, 2)`."""
        guides = [Given("a", 1, True), Given("b", 1, True)]
        estimator = Estimator(self.story, SITES, guides, {}, num_samples, baselines=baselines or {})

        def total(values):
            for guide, each, number in zip(guides, values, (3, 2), strict=True):
                guide.of_rows = Categories(number).of_parameters(each, 1)
            with keras.StatelessScope():
                terms = estimator.terms(ops.zeros((NUM_ROWS,)), random.draw_key(seed), temperature)
            return NUM_ROWS * elbo_parts(terms.nll, 0.0, 10, temperature, sum(terms.local_kl.values())).loss

        tiled = [single(np.broadcast_to(each, (NUM_ROWS, len(each)))) for each in LOGITS]
        return [array(each) for each in compiled(lambda values: gradients(total, values))(tiled)]

    def parts(self, temperature=1.0):
        """Costs of `b` and what comes after it, and of what comes before, of each pair of values: `(3, 2)`."""
        log_qa, log_qb = (_log_softmax(each) for each in LOGITS)
        after = temperature * (log_qb - _log_softmax(self.b)) - self.y
        before = temperature * (log_qa - _log_softmax(self.a)) - self.x
        return after, np.broadcast_to(before[:, None], (3, 2))

    def exact(self, temperature=1.0):
        """Expected gradients in the logits of both guides."""
        cost = sum(self.parts(temperature))
        return [np.einsum("ab,ab,abk->k", joint(), cost, score) for score in scores()]

    def variance(self, share):
        """Sum of the variances of the gradient in the logits of `b`, of two draws that measure each other.

        Args:
            share: Of the cost of what comes before `b`.
        """
        after, before = self.parts()
        cost = (after + share * before).ravel()
        score, probabilities = scores()[1].reshape(6, 2), joint().ravel()
        moments = np.zeros((2, 2))
        for one, two in itertools.product(range(6), repeat=2):
            gradient = 0.5 * (cost[one] - cost[two]) * (score[one] - score[two])
            moments += probabilities[one] * probabilities[two] * np.array([gradient, gradient**2])
        return (moments[1] - moments[0] ** 2).sum()


def joint():
    """Probabilities of the guides, `(3, 2)`."""
    return np.exp(_log_softmax(LOGITS[0])[:, None] + _log_softmax(LOGITS[1]))


def scores():
    """Gradients of each guide's log probability in its logits: `(3, 2, 3)` and `(3, 2, 2)`."""
    qa, qb = (np.exp(_log_softmax(each)) for each in LOGITS)
    of_a, of_b = np.eye(3) - qa, np.eye(2) - qb
    return np.broadcast_to(of_a[:, None], (3, 2, 3)), np.broadcast_to(of_b, (3, 2, 2))


def _log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


_RANDOM = np.random.default_rng(0)
_A, _X = np.log([0.2, 0.5, 0.3]), np.array([-1.0, 2.0, 0.5])
_B = np.log([[0.3, 0.7], [0.6, 0.4], [0.5, 0.5]])

COUPLED = Switches(_A, _X, _B, 1.5 * _RANDOM.normal(size=(3, 2)))
"""`b` depends on `a`, and `y` on both."""

APART = Switches(_A, _X, np.tile(_B[:1], (3, 1)), np.tile([[0.3, -0.9]], (3, 1)))
"""`a` and `x` have nothing to do with `b` and `y`."""

SETTLED = Switches(_A, _X, _B, _log_softmax(LOGITS[0])[:, None] + _log_softmax(LOGITS[1]) - (_A + _X)[:, None] - _B)
"""The guides are the posterior."""
