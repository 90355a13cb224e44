"""A prediction is the same function of seed and place whatever its data are."""

import keras
import numpy as np
import pytest
import scipy.sparse

import bdl
from bdl.likelihoods import Categorical, Normal

pytestmark = pytest.mark.core

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 4)).astype("float32")


class Shuffled(keras.utils.PyDataset):
    """All examples in an order that differs from reading to reading."""

    readings = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        order = np.random.default_rng(self.readings).permutation(10)
        rows = order[5 * index : 5 * index + 5]
        return X[rows], rows

    def on_epoch_begin(self):
        self.readings += 1


@pytest.fixture(scope="module")
def network():
    return keras.Sequential([keras.Input((4,)), bdl.layers.DenseFlipout(3), bdl.layers.DenseRank1(3)])


@pytest.mark.parametrize(
    "kind",
    [
        lambda: X.tolist(),
        lambda: scipy.sparse.csr_matrix(X),
        lambda: (X[start : start + 3] for start in range(0, 10, 3)),
        lambda: iter([(X[:2], np.zeros(2)), (X[2:9], np.zeros(7)), (X[9:], np.zeros(1))]),
    ],
    ids=["list", "sparse", "generator", "labelled"],
)
def test_a_prediction_is_the_same_for_every_kind_of_data(network, kind):
    expected = bdl.predict_distribution(network, X, Categorical(), 4, seed=1).probabilities
    found = bdl.predict_distribution(network, kind(), Categorical(), 4, seed=1).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-6)  # sums of other batches are rounded in another order


def test_the_members_of_an_ensemble_see_a_data_set_in_one_order(network):
    """A twin with the same seed: were the second reading in another order, rows would be mixed up."""
    data = Shuffled()
    found = bdl.predict_distribution([network, network], data, Normal(scale=1.0), 2, seed=1, keep_outputs=True).outputs
    assert data.readings == 1
    order = np.random.default_rng(1).permutation(10)
    for member, outputs in enumerate(found):
        alone = bdl.predict_distribution(
            network, X[order], Normal(scale=1.0), 1, seed=1 + member, keep_outputs=True
        ).outputs
        np.testing.assert_allclose(outputs, alone[0], atol=1e-5)


def test_a_network_with_a_fixed_batch_predicts_data_that_do_not_fill_the_last(network):
    inputs = keras.Input(batch_shape=(4, 4))
    fixed = keras.Model(inputs, keras.ops.reshape(network(inputs), (4, 3)))
    expected = bdl.predict_distribution(network, X, Categorical(), 4, seed=1).probabilities
    found = bdl.predict_distribution(fixed, X, Categorical(), 4, batch_size=4, seed=1).probabilities
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
