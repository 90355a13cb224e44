"""Weight posteriors read from layers of every family: exact round trips, and figures computed by hand."""

import keras
import numpy as np
import pytest
from foreign_layers import ForeignDense

import bdl
from bdl.diagnostics.weights import (
    aside,
    at_prior,
    dropout_rates,
    has_fitted_means,
    layer_health,
    penalty_of_point_estimates,
    start_scales,
    total_divergence,
    weight_posteriors,
    without_weakest,
)
from bdl.posteriors import LowRankNormal, MatrixNormal, MeanFieldNormal, Rank1
from bdl.priors import EmpiricalBayes, FanInNormal, Horseshoe, Laplace, Moped, Normal, ScaleMixture, TiedMean

EPSILON = float(np.finfo("float32").eps)
# exp(log(scale)) in float32: the logarithm, of a size up to 4, is rounded a few times.
ROUNDING = 32 * EPSILON

FAMILIES = {
    "mean_field": MeanFieldNormal(speed=7.0),
    "matrix_normal": MatrixNormal(),
    "low_rank": LowRankNormal(rank=2, initial_factor_scale=0.5),
    "rank1": None,
}


def our_layer(family, prior=None, shape=(4, 3)):
    if family == "rank1":
        layer = bdl.layers.DenseRank1(shape[1], name="layer")
    else:
        layer = bdl.layers.DenseReparameterization(
            shape[1], kernel_prior=prior or Normal(0.3, 0.7), kernel_posterior=FAMILIES[family], name="layer"
        )
    layer.build((None, shape[0]))
    return layer


def foreign_layer():
    layer = ForeignDense(3, 1.0)
    layer.build((None, 4))
    return layer


LAYERS = {**{name: lambda name=name: our_layer(name) for name in FAMILIES}, "foreign": foreign_layer}


def values(layer):
    return [keras.ops.convert_to_numpy(variable) for variable in layer.variables]


@pytest.mark.core
@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_assigned_is_read(kind):
    random = np.random.default_rng(0)
    for part in weight_posteriors(LAYERS[kind]()):
        shape = part.mean.shape
        mean, scale = random.normal(size=shape).astype("float32"), np.exp(random.normal(size=shape)).astype("float32")
        if kind == "matrix_normal":  # whose scales are products
            scale = scale[:1] * scale[:, :1]
        part.assign(mean, scale)
        np.testing.assert_array_equal(part.mean, mean)
        np.testing.assert_allclose(part.scale, scale, rtol=ROUNDING)


def test_scales_that_are_no_products_become_the_nearest_ones():
    """In logarithms: the mean of the row plus that of the column minus that of all, the least-squares sum."""
    (part,) = weight_posteriors(our_layer("matrix_normal", shape=(2, 2)))
    part.assign(0.0, np.exp([[0.0, 1.0], [2.0, -1.0]]))
    np.testing.assert_allclose(np.log(part.scale), [[1.0, 0.0], [1.0, 0.0]], atol=ROUNDING)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_done_aside_is_undone_to_the_bit(kind):
    layer = LAYERS[kind]()
    posteriors, before = weight_posteriors(layer), values(layer)

    def change():
        for part in posteriors:
            part.assign(5.0, 0.123)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), aside(layer):
        change()
    for value, now in zip(before, values(layer), strict=True):
        np.testing.assert_array_equal(value, now)


@pytest.mark.core
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prior_has_no_divergence_from_itself(family):
    layer = our_layer(family)
    posteriors, before = weight_posteriors(layer), values(layer)
    num_weights = sum(part.mean.size for part in posteriors)
    with at_prior(layer, posteriors):
        kl = float(keras.ops.convert_to_numpy(bdl.kl_divergence(layer)))
        assert abs(kl) <= num_weights * ROUNDING
        for part in posteriors:
            assert np.abs(part.excess()).max() <= ROUNDING
    for value, now in zip(before, values(layer), strict=True):
        np.testing.assert_array_equal(value, now)


def test_a_centred_prior_is_at_its_centre():
    layer = our_layer("mean_field", Moped())
    (part,) = weight_posteriors(layer)
    centre = part.mean
    part.assign(centre + 1.0, 0.2)
    (part,) = weight_posteriors(layer)
    with at_prior(layer, [part]):
        np.testing.assert_array_equal(part.mean, centre)


@pytest.mark.parametrize("kind", [name for name in LAYERS if name != "foreign"])
def test_total_divergence_is_that_of_the_layers(kind):
    layer = LAYERS[kind]()
    known = float(keras.ops.convert_to_numpy(bdl.kl_divergence(layer)))
    assert total_divergence(layer, weight_posteriors(layer)) == known


def test_total_divergence_of_a_foreign_layer_is_that_of_gaussians():
    layer = foreign_layer()
    (part,) = weight_posteriors(layer)
    part.assign(2.0, 0.5)
    expected = 12 * (0.5 * (0.25 + 4.0 - 1.0) + np.log(2.0))
    assert total_divergence(layer, [part]) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.core
@pytest.mark.parametrize(
    ("layer", "is_fitted", "charges"),
    [
        (bdl.layers.DenseFlipout(3, kernel_prior=TiedMean(0.1, mean_prior=Normal(0.0, 2.0))), True, True),
        (bdl.layers.DenseFlipout(3, kernel_prior=TiedMean(0.1)), True, False),
        (bdl.layers.DenseFlipout(3, kernel_prior=Normal(0.0, 2.0)), False, False),
        (bdl.layers.DenseRank1(3, kernel_prior=Normal(0.0, 2.0)), False, True),
        (bdl.layers.DenseRank1(3), False, False),
    ],
    ids=["tied_mean_with_prior", "tied_mean", "normal", "rank1_with_prior", "rank1"],
)
def test_what_point_estimates_pay(layer, is_fitted, charges):
    layer.build((None, 4))
    layer.layer.kernel.assign(np.arange(12.0).reshape(4, 3))
    assert has_fitted_means(layer) == is_fitted
    expected = 0.5 * np.sum(np.arange(12.0) ** 2) / 4.0 if charges else 0.0
    assert penalty_of_point_estimates(layer) == pytest.approx(expected, rel=1e-6)
    divergence = sum(part.excess().sum() for part in weight_posteriors(layer))
    assert float(keras.ops.convert_to_numpy(layer.kl_divergence())) == pytest.approx(divergence + expected, rel=1e-4)


def test_posteriors_come_in_the_order_of_the_layers():
    def layer(name):
        return bdl.layers.DenseReparameterization(2, name=name)

    backbone = keras.Sequential([keras.Input((4,)), layer("a"), layer("b")])
    head = keras.Sequential([keras.Input((2,)), layer("c"), layer("d")])
    network = keras.Sequential([keras.Input((4,)), backbone, head])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical())
    assert [part.layer for part in weight_posteriors(model)] == ["a", "b", "c", "d"]


class TwoKernels(keras.layers.Layer):
    """Two kernels of one shape, the variables named as TensorFlow Probability names them."""

    def build(self, shape):
        names = [f"{kernel}_posterior" for kernel in ("kernel", "recurrent_kernel")]
        self.locations = [self.add_weight(shape=(2, 2), name=f"{name}_loc") for name in names]
        self.scales = [self.add_weight(shape=(2, 2), name=f"{name}_untransformed_scale") for name in names]


def test_means_and_scales_of_one_shape_are_paired_by_their_names():
    layer = TwoKernels()
    layer.build((None, 2))
    assert [part.mean_variable.name for part in weight_posteriors(layer)] == [
        "kernel_posterior_loc",
        "recurrent_kernel_posterior_loc",
    ]


@pytest.mark.core
@pytest.mark.parametrize(("share", "zeroed"), [(0.5, 50), (0.75, 75), (0.9, 90)])
def test_the_weakest_share_of_all_weights_is_zeroed(share, zeroed):
    layers = [our_layer("mean_field", shape=shape) for shape in ((4, 5), (5, 16))]
    holder = keras.Layer()
    holder.layers = layers
    posteriors = [part for layer in layers for part in weight_posteriors(layer)]
    ratio = np.random.default_rng(0).permutation(100) + 1.0  # |mean| / scale, all different
    sign = np.where(ratio % 2, 1.0, -1.0)
    scale = np.where(ratio % 3, 0.1, 3.0)  # the largest means are not the strongest
    for part, rows in zip(posteriors, (slice(0, 20), slice(20, 100)), strict=True):
        shape = part.mean.shape
        part.assign((sign * ratio * scale)[rows].reshape(shape), scale[rows].reshape(shape))
    before = np.concatenate([part.mean.ravel() for part in posteriors])
    with without_weakest(holder, posteriors, share):
        now = np.concatenate([part.mean.ravel() for part in posteriors])
    np.testing.assert_array_equal(now, np.where(ratio <= zeroed, 0.0, before).astype("float32"))
    np.testing.assert_array_equal(np.concatenate([part.mean.ravel() for part in posteriors]), before)


def test_health_of_a_layer_by_hand():
    """Against N(0, 1): divergences 0, 1/2, 13/8 + log 2 and -0.495 + log 10; ratios of squares 1, 1, 1/4, 1/100."""
    layer = our_layer("mean_field", Normal(), shape=(2, 2))
    (part,) = weight_posteriors(layer)
    part.assign(0.0, [[1.0, 1.04], [0.5, 0.106]])
    start = start_scales([part])
    part.assign([[0.0, 1.0], [2.0, 0.0]], [[1.0, 1.0], [0.5, 0.1]])
    (health,) = layer_health(layer, [part], start)
    assert health.name == "layer"
    assert health.num_weights == 4
    expected = 0.5 + 0.5 * (0.25 + 4.0 - 1.0) + np.log(2.0) + 0.5 * (0.01 - 1.0) + np.log(10.0)
    assert health.kl == pytest.approx(expected, rel=ROUNDING)
    assert health.prior_matched == 0.25
    assert health.contraction == pytest.approx(0.5 * (0.0 + 0.75), abs=ROUNDING)
    assert health.signal_to_noise == pytest.approx(0.5, abs=ROUNDING)  # of 0, 0, 1, 4
    assert health.stuck == 0.75  # all but the one that moved from 0.106 to 0.1
    assert layer_health(layer, [part])[0].stuck is None


def test_health_of_a_layer_with_two_factors_is_one_record():
    layer = our_layer("rank1")
    (health,) = layer_health(layer, weight_posteriors(layer))
    assert health.num_weights == 4 + 3


PRIORS = [
    Normal(0.3, 0.7),
    TiedMean(FanInNormal(), Normal()),
    Laplace(scale=0.5),
    ScaleMixture(),
    Horseshoe(),
    EmpiricalBayes(),
]


def moved_layer(family, prior):
    """A layer whose posterior is away from its start; a rank-1 one with the prior on factors and, if it may, kernel."""
    if family == "rank1":
        point_prior = prior if prior.why_no_penalty is None else None
        layer = bdl.layers.Variational(keras.layers.Dense(3), posterior=Rank1(prior, prior, kernel_prior=point_prior))
    else:
        layer = bdl.layers.DenseReparameterization(3, kernel_prior=prior, kernel_posterior=FAMILIES[family])
    layer.build((None, 4))
    random = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign_add(random.normal(scale=0.05, size=variable.shape))
    return layer


@pytest.mark.core
@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kl_of_a_layer_is_its_own(family, prior):
    layer = moved_layer(family, prior)
    network = keras.Sequential([keras.Input((4,)), layer])
    (health,) = layer_health(network, weight_posteriors(network))
    expected = float(keras.ops.convert_to_numpy(layer.kl_divergence()))
    assert health.kl == pytest.approx(expected, rel=1e-5)


def test_layers_add_up_to_what_training_logs():
    """The rate of 0 leaves the weights as they are; a layer without weights' scales, and a penalty, are among them."""
    layers = [moved_layer("low_rank", Laplace()), moved_layer("rank1", ScaleMixture())]
    layers = [keras.Input((4,)), layers[0], keras.layers.Dense(4), layers[1], bdl.layers.VariationalGaussianDropout()]
    head = bdl.layers.ConcreteDropout(keras.layers.Dense(3))
    network = keras.Sequential([*layers, head])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), kl_weight=1.0)
    model.compile(keras.optimizers.SGD(0.0))
    logs = model.fit(np.ones((8, 4), "float32"), np.zeros(8, int), verbose=0).history
    parts = layer_health(network, weight_posteriors(network))
    assert [part.name for part in parts] == [layers[1].name, layers[3].name, layers[4].name, head.name]
    assert [part.num_weights for part in parts] == [12, 4 + 3, 0, 0]
    total = sum(part.kl for part in parts)
    assert total == pytest.approx(float(keras.ops.convert_to_numpy(bdl.kl_divergence(network))), rel=1e-5)
    assert total == pytest.approx(logs["kl"][0], rel=1e-5)


@pytest.mark.core
@pytest.mark.parametrize(("factor", "matched"), [(1.0, 1.0), (0.91, 1.0), (1.09, 1.0), (0.88, 0.0), (1.12, 0.0)])
@pytest.mark.parametrize(
    ("prior", "rest"),
    [(Normal(0.0, 0.5), 0.5), (Laplace(scale=0.5), 0.5 * np.sqrt(np.pi / 2)), (ScaleMixture(), 1.0)],
    ids=["normal", "laplace", "mixture"],
)
def test_a_weight_within_a_tenth_of_where_its_prior_holds_it_is_matched(prior, rest, factor, matched):
    """`x^2 / 2 - 1/2 - log x` is .01 at x = .904 and 1.10; the mixture's wide component has all of such a weight."""
    layer = our_layer("mean_field", prior)
    (part,) = weight_posteriors(layer)
    part.assign(0.0, factor * rest)
    (health,) = layer_health(layer, weight_posteriors(layer))
    assert health.prior_matched == matched


def plain_dropout():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, "relu"),
            layers.Dropout(0.1),
            layers.Dense(8, "relu"),
            layers.Dropout(0.4),
            layers.Dense(2),
        ]
    )


def test_rates_of_our_dropout_layers():
    network = keras.Sequential(
        [keras.Input((4,)), bdl.layers.DenseFlipout(3), bdl.layers.MCDropout(0.2), bdl.layers.MCGaussianDropout(0.3)]
    )
    assert dropout_rates(network) == (0.2, 0.3)


@pytest.mark.parametrize(
    ("arguments", "rates"),
    [
        ({}, (0.1, 0.4)),
        ({"rate": 0.25}, (0.25, 0.25)),
        ({"rate": 0.25, "before": "last"}, (0.25, 0.25, 0.25)),
    ],
)
def test_rates_of_a_converted_network(arguments, rates):
    assert dropout_rates(bdl.convert.to_mc_dropout(plain_dropout(), **arguments)) == rates


def test_dropout_that_is_off_at_prediction_has_no_rate():
    assert dropout_rates(plain_dropout()) == ()
