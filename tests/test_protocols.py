"""What layers and models offer, whatever their class."""

import keras
import pytest

import bdl
from bdl.protocols import HasKL, HasLocalLatents, HasTemperature

pytestmark = pytest.mark.core


class UsersLayer(keras.layers.Layer):
    def kl_divergence(self):
        return keras.ops.zeros(())


@pytest.mark.parametrize(
    ("offered", "by", "not_by"),
    [
        (
            HasKL,
            lambda: [bdl.layers.DenseFlipout(2), bdl.layers.ConcreteDropout(keras.layers.Dense(2)), UsersLayer()],
            lambda: [keras.layers.Dense(2), bdl.layers.MCDropout(0.1), bdl.layers.LatentAttention()],
        ),
        (
            HasLocalLatents,
            lambda: [bdl.layers.LatentAttention(), bdl.layers.LatentMultiHeadAttention(2, 4)],
            lambda: [keras.layers.Attention(), bdl.layers.MultiHeadAttentionReparameterization(2, 4)],
        ),
        (
            HasTemperature,
            lambda: [bdl.VariationalModel(keras.Sequential([UsersLayer()]), bdl.likelihoods.Categorical())],
            lambda: [keras.Sequential([bdl.layers.DenseFlipout(2)])],
        ),
    ],
)
def test_a_protocol_is_offered_by_these_and_not_by_those(offered, by, not_by):
    assert all(isinstance(each, offered) for each in by())
    assert not any(isinstance(each, offered) for each in not_by())


def test_the_temperature_of_a_model_before_and_after_its_schedule():
    network = keras.Sequential([keras.Input((2,)), bdl.layers.DenseFlipout(2)])
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical())
    assert (model.num_examples, model.temperature, model.final_temperature) == (None, None, 1.0)
    steps = bdl.elbo.LinearWarmup(steps=4)
    model = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=10, kl_weight=steps)
    assert (model.num_examples, model.temperature, model.final_temperature) == (10, 0.0, 1.0)
    model.end_schedule()
    assert (model.step, model.temperature) == (4, 1.0)
    tempered = bdl.VariationalModel(network, bdl.likelihoods.Categorical(), num_examples=10, kl_weight=0.5)
    assert (tempered.temperature, tempered.final_temperature) == (0.5, 0.5)
