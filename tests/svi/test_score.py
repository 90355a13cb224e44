"""Gradients of discrete sites' guides: on average those of a sum over all values, with less noise than plain ones."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from distribution_libraries import array, single
from gradients import gradients
from keras import ops
from standard_errors import assert_mean
from stories import Categorical, Normal
from two_switches import APART, COUPLED, NUM_ROWS, SETTLED, Given

from bdl import random
from bdl.elbo import elbo_parts, mixture_nll
from bdl.keras_internals import compiled
from bdl.svi import Categories, Global, Local, Observed, PerRow, score
from bdl.svi.derivatives import in_graph
from bdl.svi.estimators import Estimator, Terms
from bdl.svi.guides.gaussian import Gaussian, log_normal
from bdl.svi.story import Site

Y = 1.5
PRIOR = np.log([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]).astype("float32")
PLACES = np.array([-1.0, 0.5, 2.0], "float32")
SIZES = np.array([1.0, 0.5], "float32")  # of the two entries in the sum
VALUES = np.array(list(itertools.product(range(3), repeat=2)))  # of both
LOGITS = np.array([[0.3, -0.4, 0.9], [-0.2, 0.5, 0.1]])
MEAN, SCALE = 0.4, 0.8


def centre_of(which):
    return ops.sum(ops.take(single(PLACES), which, axis=0) * single(SIZES), axis=-1)


def story(data):
    """Two entries of three values, and a code around a sum of them."""
    which = yield Local("which", Categorical(PRIOR))
    centre = centre_of(which)
    code = yield Local("code", Normal(centre, 1.0))
    yield Observed("y", Normal(code + 0.3 * centre, 0.7), data)


def switches(data):
    """The two entries alone."""
    which = yield Local("which", Categorical(PRIOR))
    centre = centre_of(which)
    yield Observed("y", Normal(centre, 0.7), data)


def gradients_by_row(told, values, num_samples, objective, temperature, seed=0, weights=None):
    """Gradients of each row's share of the loss in logits, and in mean and scale of the code, `(rows, numbers)`."""
    which, code = Given("which", 2, True), Given("code", 1, False)
    sites = {"which": Site("which", "local", (2,), 2, 3, True), "code": Site("code", "local", (), 1)}
    guides = [which, code][: len(values)]
    sites = {name: sites[name] for guide in guides for name in guide.sizes}
    estimator = Estimator(told, sites, guides, {}, num_samples, objective)

    def total(values):
        which.of_rows = Categories(3).of_parameters(values[0], 2)
        if len(values) > 1:
            code.of_rows = Gaussian(values[1][:, :1], values[1][:, 1:], is_diagonal=True)
        terms = estimator.terms(ops.full((NUM_ROWS,), Y), random.draw_key(seed), temperature)
        local = sum(terms.local_kl.values())
        return NUM_ROWS * elbo_parts(terms.nll, 0.0, 10, temperature, local, weights, objective=objective).loss

    tiled = [single(np.broadcast_to(np.ravel(each), (NUM_ROWS, np.size(each)))) for each in values]
    return [array(each) for each in compiled(lambda values: gradients(total, values))(tiled)]


NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(30)
WEIGHTS = single(WEIGHTS / WEIGHTS.sum())


def log_q_of(logits):
    """Log probability of each pair of values."""
    logs = ops.log_softmax(ops.reshape(logits, (2, 3)), axis=-1)
    return ops.take(logs[0], VALUES[:, 0]) + ops.take(logs[1], VALUES[:, 1])


def prior_and_centre():
    centre = (PLACES[VALUES] * SIZES).sum(1)
    return single(PRIOR[0, VALUES[:, 0]] - np.log(np.exp(PRIOR[0]).sum()) + PRIOR[1, VALUES[:, 1]]), single(centre)


def exact_beside_a_code(values, objective, temperature):
    """Expected loss of one row with one pair of draws, whose code is mirrored: by sums and quadrature."""
    logits, gaussian = values
    log_q, (log_p, centre) = log_q_of(logits), prior_and_centre()
    costs = []
    for noise in (NODES, -NODES):
        noise = single(noise)[:, None]
        code = gaussian[0] + gaussian[1] * noise
        nll = -log_normal((Y - code - 0.3 * centre) / 0.7) + np.log(0.7)
        local = log_q - log_p + log_normal(noise) - ops.log(gaussian[1]) - log_normal(code - centre)
        costs.append(nll + temperature * local)  # (nodes, pairs of values)
    q = ops.exp(log_q)
    if objective == "elbo":
        return ops.sum(WEIGHTS[:, None] * costs[0] * q)
    both = mixture_nll(
        ops.stack([ops.broadcast_to(each, (30, 9, 9)) for each in (costs[0][:, :, None], costs[1][:, None])])
    )
    return ops.sum(WEIGHTS[:, None, None] * q[:, None] * q * both)


def exact_alone(logits, num_samples, objective, temperature):
    """Expected loss of one row, by the sum over all tuples of draws."""
    log_q, (log_p, centre) = log_q_of(logits), prior_and_centre()
    cost = -log_normal((Y - centre) / 0.7) + np.log(0.7) + temperature * (log_q - log_p)
    if objective == "elbo":
        return ops.sum(ops.exp(log_q) * cost)
    tuples = np.array(list(itertools.product(range(9), repeat=num_samples))).T
    weights = ops.exp(sum(ops.take(log_q, each) for each in tuples))
    return ops.sum(weights * mixture_nll(ops.stack([ops.take(cost, each) for each in tuples])))


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("objective", ["elbo", "multi_sample"])
def test_the_gradient_is_on_average_that_of_the_sum_over_all_draws(objective, temperature):
    """With weights of rows, each of which scales its row's gradient."""
    weights = np.random.default_rng(0).uniform(0.5, 2.0, NUM_ROWS).astype("float32")
    (found,) = gradients_by_row(switches, [LOGITS], 3, objective, temperature, weights=weights)
    (expected,) = compiled(
        lambda values: gradients(lambda values: exact_alone(values[0], 3, objective, temperature), values)
    )([single(LOGITS)])
    assert_mean(found / weights[:, None], array(expected).ravel(), k=4)


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("objective", ["elbo", "multi_sample"])
def test_beside_a_continuous_site_both_have_the_gradient_of_sums_and_quadrature(objective, temperature):
    """The code's draws are mirrored, and of the bound its gradients doubly reparameterized."""
    values = [LOGITS, np.array([MEAN, SCALE])]
    found = gradients_by_row(story, values, 2, objective, temperature)
    exact = compiled(
        lambda values: gradients(lambda values: exact_beside_a_code(values, objective, temperature), values)
    )([single(each) for each in values])
    for ours, expected in zip(found, exact, strict=True):
        assert_mean(ours, array(expected).ravel(), k=4)


@pytest.mark.core
def test_doubly_reparameterized_gradients_beside_discrete_draws_are_the_usual_ones_with_less_noise(monkeypatch):
    values = [LOGITS, np.array([MEAN, SCALE])]
    doubly = gradients_by_row(story, values, 6, "multi_sample", 0.7)
    monkeypatch.setattr(Estimator, "_is_doubly_reparameterized", property(lambda self: False))
    usual = gradients_by_row(story, values, 6, "multi_sample", 0.7, seed=1)
    for ours, theirs in zip(doubly, usual, strict=True):
        error = np.sqrt((ours.var(0, ddof=1) + theirs.var(0, ddof=1)) / NUM_ROWS)
        assert np.all(np.abs(ours.mean(0) - theirs.mean(0)) <= 4 * error)
    assert doubly[1].var(0).sum() < usual[1].var(0).sum()


@pytest.mark.core
@pytest.mark.parametrize(("objective", "baseline"), [("elbo", "leave_one_out"), ("multi_sample", "vimco")])
def test_the_others_as_a_measure_take_much_of_the_noise(objective, baseline, monkeypatch):
    """With 4 draws the sum of variances is 3.1 in place of 6.0 of the ELBO, 1.6 in place of 31 of the bound."""
    (ours,) = gradients_by_row(switches, [LOGITS], 4, objective, 1.0)

    def plain(costs):
        return costs if objective == "elbo" else ops.broadcast_to(mixture_nll(costs), costs.shape)

    monkeypatch.setattr(score, baseline, plain)
    (theirs,) = gradients_by_row(switches, [LOGITS], 4, objective, 1.0)
    assert ours.var(0).sum() < theirs.var(0).sum() / 1.5


@pytest.mark.core
def test_an_advantage_is_what_a_draw_adds_to_the_others():
    costs = np.array([[1.0, 4.0], [3.0, 2.0], [8.0, 0.5]], "float32")
    others = np.array([[5.5, 1.25], [4.5, 2.25], [2.0, 3.0]])
    np.testing.assert_allclose(array(score.leave_one_out(single(costs))), costs - others, rtol=1e-6)
    for place in range(3):
        replaced = costs.copy()
        replaced[place] = others[place]
        expected = array(mixture_nll(costs)) - array(mixture_nll(replaced.astype("float32")))
        np.testing.assert_allclose(array(score.vimco(single(costs)))[place], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.core
def test_an_infinite_cost_is_not_hidden():
    costs = single([[np.inf, 1.0], [2.0, 1.0]])
    log_q = single(np.log(np.full((2, 2), 0.5)))
    for measured in (score.leave_one_out, score.vimco):
        assert np.isfinite(array(score.with_score(measured(costs), log_q))).tolist() == [False, True]


@pytest.mark.core
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("switches", [COUPLED, APART, SETTLED], ids=["coupled", "apart", "settled"])
def test_of_several_sites_each_has_the_gradient_of_the_sum_over_all_values(switches, temperature):
    """At the posterior and T = 1 it is zero without noise."""
    for ours, expected in zip(switches.gradients(2, temperature), switches.exact(temperature), strict=True):
        if switches is SETTLED and temperature == 1.0:
            np.testing.assert_allclose(ours, np.zeros_like(ours), atol=1e-5)
        else:
            assert_mean(ours, expected, k=4)


@pytest.mark.core
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_site_without_and_with_the_cost_of_earlier_ones_has_the_variance_of_the_sum_over_pairs(share, monkeypatch):
    """The best share is 0 where they have nothing to do with each other, and 1 at the posterior."""
    monkeypatch.setattr(score, "joined", lambda after, before: after if before is None else after + share * before)
    for switches, best in ((COUPLED, None), (APART, 0.0), (SETTLED, 1.0)):
        expected = switches.variance(share)
        if best is not None:
            assert switches.variance(best) <= min(switches.variance(other) for other in (0.0, 0.5, 1.0))
        found = switches.gradients(2)[1]
        if expected > 1e-12:
            assert_mean(((found - switches.exact()[1]) ** 2).sum(-1), expected, k=4)
        else:
            np.testing.assert_allclose(found, np.zeros_like(found), atol=1e-5)


@pytest.mark.core
def test_the_share_of_earlier_costs_is_as_good_as_the_best_one():
    """It is fitted to 8,000 draws, and the fit has an error of about one in their root."""
    for switches in (COUPLED, APART, SETTLED):
        found = switches.gradients(2)[1]
        squares = ((found - switches.exact()[1]) ** 2).sum(-1)
        least = min(switches.variance(share) for share in (0.0, 1.0))
        assert squares.mean() <= least + 4 * squares.std() / NUM_ROWS**0.5 + 1e-6


@pytest.mark.core
def test_the_share_of_a_row_is_the_regression_over_the_other_rows():
    generator = np.random.default_rng(0)
    after, before = generator.normal(size=(2, 3, 5))
    after -= 0.6 * before
    found = array(score.joined(single(after), single(before)))
    for row in range(5):
        others = [other for other in range(5) if other != row]
        share = -np.sum((after * before)[:, others]) / np.sum(before[:, others] ** 2)
        assert 0 < share < 1
        np.testing.assert_allclose(found[:, row], after[:, row] + share * before[:, row], rtol=1e-5, atol=1e-6)
    single_row = array(score.joined(single(after[:, :1]), single(before[:, :1])))
    np.testing.assert_allclose(single_row, (after + before)[:, :1], rtol=1e-6)


@pytest.mark.core
def test_draws_of_discrete_sites_are_independent_and_at_least_two():
    which, code = Given("which", 2, True), Given("code", 1, False)
    which.of_rows = Categories(3).of_parameters(ops.zeros((5, 6)), 2)
    code.of_rows = Gaussian(ops.zeros((5, 1)), ops.ones((5, 1)), is_diagonal=True)
    sites = {"which": Site("which", "local", (2,), 2, 3, True), "code": Site("code", "local", (), 1)}
    for objective in ("elbo", "multi_sample"):
        estimator = Estimator(story, sites, [which, code], {}, 1, objective)
        assert estimator.num_draws == 2
        draws = estimator.draws(ops.full((5,), Y), random.draw_key(0), 2, is_shared=objective == "multi_sample")
        np.testing.assert_array_equal(array(draws.noise[1][0]), -array(draws.noise[1][1]))
        correlation = np.corrcoef(array(draws.noise[0][0]).ravel(), array(draws.noise[0][1]).ravel())[0, 1]
        assert abs(correlation) < 0.9


class Told(Given):
    """Of one row, told by a function of the draw of a global site; or that global site's."""

    of_given = None

    def __init__(self, name, size, is_local):
        super().__init__(name, size, is_discrete=is_local)
        self.is_local = is_local

    @property
    def given(self):
        return ("level",) if self.is_local else ()

    def distribution(self, data=None, given=None):
        return self.of_given(data, given)


def levels(data):
    """The two entries around a level that all rows share."""
    level = yield Global("level", Normal(ops.zeros((1,)), 1.0))
    which = yield Local("which", Categorical(PRIOR))
    yield Observed("y", Normal(level + centre_of(which), 0.7), data)


@pytest.mark.core
@pytest.mark.parametrize("objective", ["elbo", "multi_sample"])
def test_a_global_whose_draw_the_guide_reads_has_its_gradient_through_the_score_too(objective):
    """Its draws are mirrored, or shared by all draws of the discrete site; by sums and quadrature over its noise."""
    slope, rows = single([0.5, -0.3, 0.2, 0.1, 0.4, -0.6]), 20
    level, which = Told("level", 1, False), Told("which", 2, True)
    sites = {"level": Site("level", "global", (1,), 1), "which": Site("which", "local", (2,), 2, 3, True)}
    estimator = Estimator(levels, sites, [level, which], {}, 2, objective)

    def logits_at(logits, value):
        return ops.reshape(logits, (-1,)) + slope * value

    def total(values, key):
        level.of_given = lambda data, given: Gaussian(values[0][:1], values[0][1:], is_diagonal=True)

        def of_given(data, given):
            logits = ops.broadcast_to(logits_at(values[1], given[0]), (rows, 6))
            return Categories(3).of_parameters(logits, 2)

        which.of_given = of_given
        terms = estimator.terms(ops.full((rows,), Y), key, 0.7)
        shared = sum(terms.global_kl.values())
        return elbo_parts(terms.nll, shared, 3, 0.7, terms.local_kl["which"], objective=objective).loss

    def exact(values):
        log_p, centre = prior_and_centre()
        loss = -0.7 / 3 * (ops.log(values[0][1]) + 0.5 - 0.5 * ops.sum(values[0] ** 2))
        value = values[0][0] + values[0][1] * single(NODES)[:, None]
        logs = ops.log_softmax(ops.reshape(logits_at(values[1], value), (-1, 2, 3)), axis=-1)
        log_q = ops.take(logs[:, 0], VALUES[:, 0], axis=1) + ops.take(logs[:, 1], VALUES[:, 1], axis=1)
        cost = -log_normal((Y - value - centre) / 0.7) + np.log(0.7) + 0.7 * (log_q - log_p)
        q = ops.exp(log_q)
        if objective == "elbo":
            return loss + ops.sum(WEIGHTS[:, None] * q * cost)
        pairs = ops.stack([ops.broadcast_to(each, (30, 9, 9)) for each in (cost[:, :, None], cost[:, None])])
        return loss + ops.sum(WEIGHTS[:, None, None] * q[:, :, None] * q[:, None] * mixture_nll(pairs))

    values = [single([MEAN, SCALE]), single(LOGITS)]
    expected = compiled(lambda values: gradients(exact, values))(values)
    one = in_graph(lambda values, key: gradients(lambda values: total(values, key), values))
    found = [one(values, random.fold_in(random.draw_key(1), number)) for number in range(200)]
    for place, each in enumerate(expected):
        assert_mean(np.stack([array(draw[place]).ravel() for draw in found]), array(each).ravel(), k=4)


@pytest.mark.core
def test_beside_rows_that_see_other_draws_before_they_are_drawn_the_whole_cost_stays():
    by_site = {"code": single([[1.0], [2.0]]), "a": single([[3.0], [5.0]])}
    terms = Terms(by_site["code"], {"a": by_site["a"]}, {}, by_site)
    for other, expected in (
        (Given("code", 1, False), ([[1.5], [2.5]], [[1.0], [2.0]])),
        (PerRow(1), ([[2.5], [4.5]], None)),
    ):
        estimator = SimpleNamespace(guides=[other, Given("a", 1, True)])
        after, before = score._around(estimator, 1, terms, 0.5)
        np.testing.assert_allclose(array(after), expected[0])
        assert before is expected[1] or np.array_equal(array(before), expected[1])
