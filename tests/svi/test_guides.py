"""Guides: what they draw is what they say the density of, jointly and site by site; and which is for what."""

import keras
import numpy as np
import pytest
from gradients import gradients
from keras import ops
from scipy import stats
from standard_errors import assert_within_standard_errors

from bdl.svi import Amortized, Delta, Flow, FullRank, LowRank, MeanField
from bdl.svi.guides.gaussian import Gaussian, lower_triangular
from bdl.svi.guides.selection import assign_guides, check_guide
from bdl.svi.story import Site

RNG = np.random.default_rng(0)
ROOT = np.tril(RNG.normal(size=(3, 3)))
ROOT[np.diag_indices(3)] = np.abs(ROOT[np.diag_indices(3)]) + 0.3
ORIGIN = np.array([1.0, -2.0, 30.0])
SITES = {
    "mean": Site("mean", "global", (), 1),
    "scale": Site("scale", "global", (), 1),
    "code": Site("code", "local", (2,), 2),
}


def bound(guide, **start):
    guide.bind({"a": 2, "b": 1})
    if start:
        guide.start_at(**start)
    return guide


def bound_to_a_mean(guide):
    guide.bind({"mean": 1})
    return guide


def moved(guide):
    for variable in guide.trainable_variables:
        variable.assign(RNG.normal(size=variable.shape))
    return guide


def noise_of(*shape):
    return tensor(RNG.normal(size=shape))


def tensor(values):
    return ops.convert_to_tensor(values, dtype="float32")


def array(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


@pytest.mark.core
@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_the_density_of_a_draw_is_that_of_the_gaussian(kind):
    guide = moved(bound(kind(), origin=ORIGIN, frame=ROOT))
    family = guide.distribution()
    noise = noise_of(4, 3)
    draws, log_q = array(family.draw(noise)), array(family.log_density(noise))
    mean = array(family.draw(tensor(np.zeros(3))))
    root = np.stack([array(family.draw(tensor(unit))) - mean for unit in np.eye(3)], axis=1)
    expected = stats.multivariate_normal(mean, root @ root.T).logpdf(draws)
    np.testing.assert_allclose(log_q.sum(-1), expected, rtol=1e-4)


@pytest.mark.core
def test_a_full_rank_guide_begins_at_the_laplace_approximation():
    family = bound(FullRank(), origin=ORIGIN, frame=ROOT).distribution()
    np.testing.assert_allclose(array(family.mean), ORIGIN, rtol=1e-5)
    np.testing.assert_allclose(array(family.factor), ROOT, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_a_mean_field_guide_begins_at_the_best_one_for_a_gaussian():
    """Its variances are the inverses of the precision's diagonal."""
    family = bound(MeanField(), origin=ORIGIN, frame=ROOT).distribution()
    np.testing.assert_allclose(array(family.factor) ** -2, np.diag(np.linalg.inv(ROOT @ ROOT.T)), rtol=1e-4)


@pytest.mark.core
def test_the_block_of_a_site_is_its_conditional_and_its_kl_the_closed_form():
    noise = noise_of(3)
    family = Gaussian(tensor(ORIGIN), tensor(ROOT), is_diagonal=False)
    u, covariance = array(family.draw(noise)), ROOT @ ROOT.T
    block = family.block(noise, 1, 3)
    gain = covariance[1:, :1] / covariance[0, 0]
    mean = ORIGIN[1:] + gain[:, 0] * (u[0] - ORIGIN[0])
    conditional = covariance[1:, 1:] - gain @ covariance[:1, 1:]
    np.testing.assert_allclose(array(block.mean), mean, rtol=1e-4)
    np.testing.assert_allclose(array(block.variance), np.diag(conditional), rtol=1e-4)
    loc, scale = np.array([0.5, 20.0]), np.array([2.0, 9.0])
    gap = mean - loc
    expected = 0.5 * (
        np.trace(conditional / scale**2)
        + (gap**2 / scale**2).sum()
        - 2
        + np.log(scale**2).sum()
        - np.linalg.slogdet(conditional)[1]
    )
    assert float(block.kl_from(tensor(loc), tensor(scale))) == pytest.approx(expected, rel=1e-4)


def divergence_of_draws(mean, factor, noise, sticks):
    """Mean of `log q - log p` over draws of q, of a Gaussian p with `ORIGIN` and `ROOT`."""
    family = Gaussian(mean, ops.tril(factor), is_diagonal=False, sticks=sticks)
    whitened = ops.matmul(family.draw(noise) - tensor(ORIGIN), tensor(np.linalg.inv(ROOT).T))
    log_q = ops.sum(family.log_density(noise), axis=-1)
    return ops.mean(log_q + 0.5 * ops.sum(whitened**2, axis=-1))


@pytest.mark.core
def test_a_density_that_sticks_has_no_noise_in_its_gradient_at_the_posterior():
    for noise in (noise_of(1, 3), noise_of(1, 3)):
        found = gradients(
            lambda values, noise=noise: divergence_of_draws(*values, noise, True), [tensor(ORIGIN), tensor(ROOT)]
        )
        scale = np.abs(np.linalg.inv(ROOT)).max()
        for each in found:
            np.testing.assert_allclose(array(each) / scale, 0.0, atol=1e-4)


@pytest.mark.core
def test_the_gradient_of_a_density_that_sticks_is_that_of_the_divergence_on_average():
    """Away from the posterior, against the closed form: `P (m - m_p)` and `tril(P L - L^-T)`, P the precision of p."""
    mean, factor = ORIGIN + ROOT @ [0.5, -0.3, 0.2], 1.5 * ROOT
    precision = np.linalg.inv(ROOT @ ROOT.T)
    expected = [precision @ (mean - ORIGIN), np.tril(precision @ factor - np.linalg.inv(factor).T)]
    noise = np.random.default_rng(3).normal(size=(40, 100, 3))
    draws = [
        gradients(
            lambda values, each=each: divergence_of_draws(*values, tensor(each), True), [tensor(mean), tensor(factor)]
        )
        for each in noise
    ]
    for place, truth in enumerate(expected):
        values = np.stack([array(each[place]) for each in draws])
        assert_within_standard_errors(values.mean(0), truth, values.std(0, ddof=1) / np.sqrt(40) + 1e-6, k=5)


@pytest.mark.core
def test_a_point_has_no_noise_and_no_density():
    family = bound(Delta(), origin=ORIGIN, frame=None).distribution()
    noise = tensor(np.ones((2, 3)))
    np.testing.assert_allclose(array(family.draw(noise)), [ORIGIN, ORIGIN], rtol=1e-6)
    assert not array(family.log_density(noise)).any()
    assert family.block(noise, 0, 1) is None


@pytest.mark.core
@pytest.mark.parametrize("family", ["mean_field", "full_rank"])
def test_an_amortized_guide_reads_each_row_and_the_globals_draw(family):
    data = {"x": noise_of(4, 3), "n": ops.arange(4)}
    guide = Amortized(keras.layers.Dense(5, activation="tanh"), ["x", "n"], given=("mean",), family=family)
    guide.bind({"code": 2}, data, given_size=1)
    given = ops.convert_to_tensor(np.array([0.3], "float32"))
    start = guide.distribution(data, given)
    np.testing.assert_allclose(array(start.draw(tensor(np.ones((4, 2))))), 1.0, rtol=1e-6)  # standard normal
    moved(guide)
    whole = guide.distribution(data, given)
    part = guide.distribution({key: value[1:3] for key, value in data.items()}, given)
    np.testing.assert_allclose(array(part.mean), array(whole.mean)[1:3], rtol=1e-4, atol=1e-6)
    other = guide.distribution(data, given + 1.0)
    assert np.abs(array(other.mean) - array(whole.mean)).min() > 0
    factor = array(whole.factor)
    scales = factor if family == "mean_field" else np.diagonal(factor, axis1=1, axis2=2)
    assert (scales > 0).all()
    if family == "full_rank":
        assert not np.triu(factor, 1).any()


@pytest.mark.core
@pytest.mark.parametrize("family", [LowRank(1), Flow(layers=2, width=3)])
def test_a_row_of_an_amortized_guide_may_have_any_family(family):
    data = {"x": noise_of(4, 3)}
    guide = Amortized(keras.layers.Dense(5, activation="tanh"), "x", family=family)
    guide.bind({"code": 2}, data)
    noise = noise_of(4, guide.noise_size)
    start = guide.distribution(data)
    own = array(noise)[:, :2]
    log_density = -0.5 * own**2 - 0.5 * np.log(2 * np.pi)
    # Factors of .01 move a draw by .01 times a normal number or two, and a density by their squares and products.
    np.testing.assert_allclose(array(start.draw(noise)), own, atol=0.06)
    np.testing.assert_allclose(array(start.log_density(noise)), log_density, atol=0.2)
    for variable in guide.trainable_variables:
        variable.assign(0.3 * RNG.normal(size=variable.shape))
    whole = guide.distribution(data)
    part = guide.distribution({"x": data["x"][1:3]})
    for name in ("draw", "log_density"):
        found, expected = array(getattr(part, name)(noise[1:3])), array(getattr(whole, name)(noise))[1:3]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.core
@pytest.mark.parametrize(
    "guide",
    [
        MeanField(),
        FullRank(),
        LowRank(1),
        Flow(layers=2, width=3),
        Delta(),
        Amortized(keras.layers.Dense(2), "x", ["mean"]),
        Amortized(keras.layers.Dense(2), "x", family="low_rank"),
        Amortized(keras.layers.Dense(2), "x", family=Flow(layers=2, width=3)),
        Amortized(keras.layers.Dense(2), "x", family="structured", by_step=True),
    ],
)
def test_guides_come_back_from_their_configuration(guide):
    data = {"x": tensor(np.ones((3, 2)))}
    guide.bind({"code": 2}, data, given_size=len(guide.given))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(guide))
    assert again.sizes == {"code": 2}
    assert again.get_config() == guide.get_config()
    assert [weight.shape for weight in again.weights] == [weight.shape for weight in guide.weights]


def test_lower_triangular_drops_what_is_above():
    found = array(lower_triangular(tensor(np.full((2, 2), 3.0)), tensor([1.0, 2.0])))
    np.testing.assert_array_equal(found, [[1.0, 0.0], [3.0, 2.0]])


def test_globals_that_a_dict_leaves_out_have_a_mean_field_guide():
    code = Amortized(keras.layers.Dense(2), "x")
    assert [(names, type(guide)) for names, guide in assign_guides({"code": code}, SITES)] == [
        (("code",), Amortized),
        (("mean", "scale"), MeanField),
    ]
    joint = check_guide({("mean", "scale"): "full_rank", "code": code})
    assert [names for names, _ in assign_guides(joint, SITES)] == [("mean", "scale"), ("code",)]


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        ("full", "`guide` must be a bdl.svi.guides.Guide, one of .*, not 'full'"),
        ({"mean": "delta"}, "a guide for each local site, and has none for \\['code'\\]"),
        ("mean_field", "guide of local sites must be Amortized or PerRow, not MeanField, which \\['code'\\]"),
        ({"mean": Amortized(keras.layers.Dense(2))}, "has none for"),
        ({"level": "delta"}, "for latent sites of the story, \\['mean', 'scale', 'code'\\], not for \\['level'\\]"),
        ({"mean": "delta", ("mean", "scale"): "delta"}, "one guide for each site, not two for \\['mean'\\]"),
        ({("mean", "code"): Amortized(keras.layers.Dense(2))}, "guide of global sites must be one of"),
        ({"code": Amortized(keras.layers.Dense(2), given=["code"])}, "`given` of Amortized must be global sites"),
    ],
)
def test_guides_that_do_not_fit_the_sites_are_refused(guide, message):
    with pytest.raises(ValueError, match=message):
        assign_guides(check_guide(guide), SITES)


def test_one_guide_for_two_entries_is_refused():
    guide = MeanField()
    with pytest.raises(ValueError, match="a guide of its own for each entry"):
        check_guide({"mean": guide, "scale": guide})


def test_what_an_amortized_guide_cannot_read_is_named():
    data = {"x": np.ones((3, 2), "float32")}
    with pytest.raises(ValueError, match="`inputs` must be keys of the data, \\['x'\\], not \\['y'\\]"):
        Amortized(keras.layers.Dense(2), ["x", "y"]).bind({"code": 1}, data)
    with pytest.raises(ValueError, match="`inputs` must name what the network reads of \\['x'\\]"):
        Amortized(keras.layers.Dense(2)).bind({"code": 1}, data)
    with pytest.raises(ValueError, match=r"`family` must be one of .*'flow'.*, not 'delta'"):
        Amortized(keras.layers.Dense(2), family="delta")
    with pytest.raises(ValueError, match="`family` must be one of"):
        Amortized(keras.layers.Dense(2), family=Delta())
    with pytest.raises(ValueError, match="`family` must be a guide without sites of its own, not that of \\['mean'\\]"):
        Amortized(keras.layers.Dense(2), family=bound_to_a_mean(LowRank()))
    with pytest.raises(ValueError, match="`network` must be a Keras layer"):
        Amortized("dense")
