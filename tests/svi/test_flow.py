"""The flow guide: an invertible map, the density that follows from it, its gradients, and what it can follow."""

import keras
import numpy as np
import pytest
from gradients import gradients
from keras import ops
from scipy.integrate import quad
from scipy.stats import halfnorm, norm
from standard_errors import assert_within_standard_errors
from stories import HalfNormal, Normal

from bdl.svi import SVI, Flow, FullRank, Global, Observed
from bdl.svi.guides.coupling import Couplings
from bdl.svi.guides.flow import Bent

RNG = np.random.default_rng(0)
SIZES = (1, 2, 5)
ROOT = np.array([[0.5, 0.0, 0.0], [1.0, 2.0, 0.0], [-0.3, 0.2, 1.0]])


def tensor(values):
    return ops.convert_to_tensor(values, dtype="float32")


def array(values):
    return ops.convert_to_numpy(values).astype("float64")


def made(size, *lead, layers=6):
    couplings = Couplings(size, layers=layers, width=4)
    return couplings, tensor(1.5 * RNG.normal(size=(*lead, couplings.num_weights)))


def bent(size=3, sticks=False, layers=4):
    couplings, weights = made(size, layers=layers)
    return Bent(tensor(np.linspace(-1.0, 1.0, size)), tensor(ROOT[:size, :size]), couplings, weights, sticks)


@pytest.mark.core
@pytest.mark.parametrize("size", SIZES)
def test_the_way_back_undoes_the_way_there(size):
    couplings, weights = made(size)
    x = 2.0 * RNG.normal(size=(7, size))
    y, log_scale = couplings.forward(weights, tensor(x))
    back, again = couplings.inverse(weights, y)
    assert np.abs(array(y) - x).max() > 0.3
    np.testing.assert_allclose(array(back), x, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(array(again), array(log_scale), atol=1e-3)


@pytest.mark.core
@pytest.mark.parametrize("size", SIZES)
def test_log_scales_add_up_to_the_log_determinant_and_all_numbers_meet(size):
    couplings, weights = made(size)
    x = tensor(RNG.normal(size=size))
    rows = [gradients(lambda v, i=i: couplings.forward(weights, v[0])[0][i], [x])[0] for i in range(size)]
    jacobian = np.stack([array(row) for row in rows])
    assert (jacobian != 0).all()
    expected = np.linalg.slogdet(jacobian)[1]
    assert array(couplings.forward(weights, x)[1]).sum() == pytest.approx(expected, abs=1e-4)


@pytest.mark.core
def test_one_number_has_a_density_that_integrates_to_one():
    couplings, weights = made(1)
    family = Bent(tensor([0.4]), tensor([[2.0]]), couplings, weights)
    noise = tensor(np.linspace(-8.0, 8.0, 4001)[:, None])
    draws, density = array(family.draw(noise))[:, 0], np.exp(array(family.log_density(noise))[:, 0])
    assert (np.diff(draws) > 0).all()
    assert np.trapezoid(density, draws) == pytest.approx(1.0, abs=1e-3)
    middle = array(family.draw(tensor([[-1.0], [0.0], [1.0]])))[:, 0]
    assert abs(middle[2] - 2 * middle[1] + middle[0]) > 0.05  # bent


@pytest.mark.core
def test_a_flow_begins_as_a_full_rank_guide_does():
    noise = tensor(RNG.normal(size=(4, 3)))
    guides = Flow(layers=2, width=3), FullRank()
    for guide in guides:
        guide.bind({"a": 2, "b": 1})
    for start in ({"frame": None}, {"frame": ROOT}):
        for guide in guides:
            guide.start_at(np.array([1.0, -2.0, 30.0]), **start)
        flow, gaussian = (guide.distribution() for guide in guides)
        np.testing.assert_allclose(array(flow.draw(noise)), array(gaussian.draw(noise)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(array(flow.log_density(noise)), array(gaussian.log_density(noise)), atol=1e-4)


@pytest.mark.core
def test_a_density_that_sticks_has_the_same_value():
    family = bent()
    noise = tensor(RNG.normal(size=(2, 5, 3)))
    again = Bent(family.mean, family.factor, family.couplings, family.weights, sticks=True)
    np.testing.assert_allclose(array(again.log_density(noise)), array(family.log_density(noise)), atol=2e-3)


def values_of(family):
    return [family.mean, family.factor, family.weights]


def with_values(values, couplings, sticks):
    mean, factor, weights = values
    return Bent(mean, ops.tril(factor), couplings, weights, sticks)


@pytest.mark.core
def test_gradients_have_no_noise_at_the_posterior():
    """The posterior is the flow itself, with constant weights; those of a density that does not stick have some."""
    family = bent()
    noise = tensor(RNG.normal(size=(1, 3)))

    mean, factor, weights = (tensor(array(each)) for each in values_of(family))  # a tape watches tensors, not values

    def gap(values, sticks):
        mine = with_values(values, family.couplings, sticks)
        back = ops.transpose(ops.solve_triangular(factor, ops.transpose(mine.draw(noise) - mean), lower=True))
        e, log_scale = family.couplings.inverse(weights, back)
        return ops.sum(mine.log_density(noise)) - ops.sum(-0.5 * e**2 - log_scale)

    sizes = {
        sticks: max(np.abs(array(each)).max() for each in gradients(lambda v, s=sticks: gap(v, s), values_of(family)))
        for sticks in (True, False)
    }
    assert sizes[True] < 2e-3 < 0.1 < sizes[False]


@pytest.mark.core
def test_gradients_on_the_path_are_the_others_on_average():
    """Their difference is the gradient of the density at a fixed point, whose mean is zero."""
    family = bent(layers=2)
    noise = np.random.default_rng(5).normal(size=(40, 50, 3))

    def cost(values, each, sticks):
        mine = with_values(values, family.couplings, sticks)
        return ops.mean(
            ops.sum(mine.log_density(tensor(each)), axis=-1) + 0.5 * ops.sum(mine.draw(tensor(each)) ** 2, axis=-1)
        )

    gaps = []
    for each in noise:
        path, full = (gradients(lambda v, e=each, s=s: cost(v, e, s), values_of(family)) for s in (True, False))
        gaps.append(np.concatenate([(array(a) - array(b)).ravel() for a, b in zip(path, full, strict=True)]))
    gaps = np.stack(gaps)
    assert_within_standard_errors(gaps.mean(0), 0.0, gaps.std(0, ddof=1) / np.sqrt(40) + 1e-5)


@pytest.mark.core
def test_a_row_of_a_family_is_bent_by_its_own_weights():
    family = Flow(layers=3, width=4)
    parameters = 0.3 * RNG.normal(size=(5, family.num_parameters(2)))
    noise = RNG.normal(size=(4, 5, 2))
    whole = family.of_parameters(tensor(parameters), 2)
    for row in range(5):
        one = family.of_parameters(tensor(parameters[row]), 2)
        for name in ("draw", "log_density"):
            found = array(getattr(whole, name)(tensor(noise)))[:, row]
            np.testing.assert_allclose(found, array(getattr(one, name)(tensor(noise[:, row]))), rtol=1e-4, atol=1e-5)
    start = family.of_parameters(tensor(np.zeros_like(parameters)), 2)
    np.testing.assert_allclose(array(start.draw(tensor(noise))), noise, rtol=1e-5, atol=1e-6)


def one_scale(data):
    scale = yield Global("scale", HalfNormal(3.0))
    yield Observed("y", Normal(0.0, scale), data["y"])


def test_a_flow_follows_a_skewed_posterior_where_a_gaussian_cannot():
    """ELBO against the evidence by quadrature, of the scale behind three values."""
    y = np.array([0.5, -1.0, 1.2], "float32")
    evidence = np.log(quad(lambda s: halfnorm.pdf(s, scale=3.0) * norm.pdf(y, scale=s).prod(), 0, 40, points=[1.0])[0])
    gaps = {}
    for name, guide in (("full_rank", "full_rank"), ("flow", Flow(layers=4, width=4))):
        model = SVI(one_scale, guide, start="laplace", num_samples=8, seed=0)
        model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-2, 300)))
        model.fit({"y": y}, batch_size="all", steps=300, verbose=0)
        log_weights = model.log_weights({"y": y}, num_samples=4000, seed=1)
        gaps[name] = evidence - log_weights.mean(), log_weights.std(ddof=1) / np.sqrt(4000)
    (gaussian, error), (flow, flow_error) = gaps["full_rank"], gaps["flow"]
    assert_within_standard_errors(gaussian, 0.0323, error + 1e-3)  # the best Gaussian's, by quadrature
    assert flow > -5 * flow_error
    assert flow < 0.2 * gaussian


@pytest.mark.parametrize(("settings", "name"), [({"layers": 0}, "layers"), ({"width": 1.5}, "width")])
def test_arguments_that_count_nothing_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
        Flow(**settings)
