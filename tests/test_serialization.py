"""Settings objects go through Keras' configurations and come back equal."""

import json
from dataclasses import dataclass

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdl import posteriors, priors
from bdl.posteriors import LowRankNormal, MatrixNormal, MeanFieldNormal, Posterior, Rank1
from bdl.priors import (
    EMPIRICAL_BAYES_GROUPS,
    HORSESHOE_GROUPS,
    EmpiricalBayes,
    FanInNormal,
    Horseshoe,
    Laplace,
    Moped,
    Normal,
    Prior,
    ScaleMixture,
    TiedMean,
    WidthNormal,
)
from bdl.serialization import Serializable, deserialize, resolve, serialize

positive = st.floats(1e-6, 1e6)
PRIORS = st.one_of(
    st.builds(Normal, st.floats(-1e6, 1e6), positive),
    st.builds(FanInNormal, positive),
    st.builds(WidthNormal, positive, positive),
    st.builds(EmpiricalBayes, st.sampled_from(EMPIRICAL_BAYES_GROUPS), st.floats(0, 1e6)),
    st.builds(TiedMean, st.one_of(positive, st.just("fan_in"))),
    st.builds(TiedMean, st.builds(FanInNormal, positive), st.builds(Normal, st.floats(-1e6, 1e6), positive)),
    st.builds(Moped, st.builds(FanInNormal, positive)),
    st.builds(Laplace, st.floats(-1e6, 1e6), st.one_of(positive, st.just("fan_in"))),
    st.builds(Horseshoe, st.sampled_from(HORSESHOE_GROUPS), st.one_of(positive, st.just("fan_in"))),
    st.builds(
        ScaleMixture,
        st.just((0.25, 0.75)),
        st.tuples(positive, positive),
        st.sampled_from([None, "fan_in"]),
        st.booleans(),
    ),
)
POSTERIORS = st.one_of(
    st.builds(MeanFieldNormal, st.one_of(st.none(), positive), positive),
    st.builds(MatrixNormal, st.one_of(st.none(), positive), positive),
    st.builds(
        LowRankNormal, st.integers(1, 9), st.one_of(st.none(), positive), positive, st.one_of(st.none(), positive)
    ),
    st.builds(Rank1, PRIORS, PRIORS, positive, positive, st.one_of(st.none(), st.builds(Normal), st.builds(Laplace))),
)


@given(st.one_of(PRIORS, POSTERIORS))
def test_round_trip_through_json(settings_object: Serializable):
    config = json.loads(json.dumps(serialize(settings_object)))
    assert deserialize(config) == settings_object
    assert type(settings_object).from_config(settings_object.get_config()) == settings_object


@given(PRIORS)
def test_keras_alone_brings_it_back(prior: Prior):
    config = keras.saving.serialize_keras_object(prior)
    assert keras.saving.deserialize_keras_object(config) == prior


def test_registered_names_are_unique():
    """Two classes under one name would silently load as each other."""
    names = [
        keras.saving.get_registered_name(value)
        for module in (priors, posteriors)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, (Prior, Posterior)) and value not in (Prior, Posterior)
    ]
    assert {name.split(">")[0] for name in names} == {"bdl.priors", "bdl.posteriors"}
    for name in names:
        assert keras.saving.get_registered_name(keras.saving.get_registered_object(name)) == name


@pytest.mark.parametrize("value", [1, 0.5, "fan_in", None, {"a": 1}])
def test_what_is_no_settings_object_is_left_alone(value: object):
    assert serialize(value) is value
    assert deserialize(value) is value


@dataclass(frozen=True)
class Colour(Serializable):
    """A settings object of a test."""

    name: str = "red"


def test_resolve():
    registry = {"colour": Colour}
    assert resolve("colour", registry, "paint", Colour) == Colour()
    blue = Colour("blue")
    assert resolve(blue, registry, "paint", Colour) is blue
    config = keras.saving.serialize_keras_object(Normal())
    for bad in ("red", 3, None, Normal(), config):
        with pytest.raises(ValueError, match=r"`paint` must be a .*Colour or one of the names \['colour'\], not"):
            resolve(bad, registry, "paint", Colour)
