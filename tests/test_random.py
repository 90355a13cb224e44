"""The noise is normal, equals its definition, and is unrelated wherever a network needs it to be.

`benchmarks/random_battery.py` holds the long statistical battery; here stands what can be checked in seconds.
"""

import math

import keras
import numpy as np
import pytest
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy import stats
from standard_errors import assert_mean, assert_within_standard_errors

from bdl import random
from bdl.random import hashing

pytestmark = pytest.mark.core

BACKEND = keras.backend.backend()
needs_hash = pytest.mark.skipif(BACKEND == "torch", reason="Torch draws from its own generator")
needs_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="dynamic shapes are TensorFlow's")

KEYS = [(0, 0), (0, 1), (1, 0), (12_345, 678), (0x7FFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0x9E3779B9)]
SIZE = 2**20
RARE = 1e-6  # probability that a correct generator fails a test of many values
COMPILED_TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # of erfinv in float32, which XLA and the runtimes round differently


def array(tensor):
    return np.array(ops.convert_to_numpy(tensor))


def normal(shape, key):
    return array(random.normal(shape, key)).astype("float64")


def as_key(words):
    return ops.convert_to_tensor(np.array(words, dtype="uint32"))


def compiled(function):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    import jax

    return jax.jit(function)


def reference_mix(word):
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x21F0AAAD)
    word = (word ^ (word >> np.uint32(15))) * np.uint32(0x735A2D97)
    return word ^ (word >> np.uint32(15))


def reference_bits(size, key):
    words = np.array(key, dtype="uint32")[:, None]  # arrays wrap around in silence, scalars warn
    first = reference_mix(words[0] + np.uint32(0x9E3779B9))
    second = reference_mix(first ^ words[1])
    third = reference_mix(second + first)
    return reference_mix(reference_mix(np.arange(size, dtype="uint32") ^ second) ^ third)


def reference_fold_in(key, number):
    golden = np.uint32(0x9E3779B9)
    words = np.array(key, dtype="uint32")[:, None]
    word = reference_mix((words[1] ^ golden) + np.array([number], dtype="uint32") * golden)
    return np.concatenate([words[0] ^ word, reference_mix(words[1] ^ word * golden)])


def assert_uncorrelated(rows):
    """No pair of rows is equal or correlated; the bound holds for all of them at once."""
    rows = np.stack(rows)
    correlation = rows @ rows.T / rows.shape[1]
    pairs = correlation[np.triu_indices(len(rows), 1)]
    bound = stats.norm.isf(RARE / 2 / pairs.size) / np.sqrt(rows.shape[1])
    assert abs(pairs).max() < bound, f"{abs(pairs).max():.4f} is the largest of {pairs.size} correlations"


# Distribution


def test_normal_has_the_moments_of_a_standard_normal():
    noise = normal((SIZE,), random.draw_key(1))
    moments = [(noise**power).mean() for power in (1, 2, 3, 4)]
    assert_within_standard_errors(moments, [0, 1, 0, 3], np.sqrt(np.array([1, 2, 15, 96]) / SIZE))


def test_normal_passes_kolmogorov_smirnov():
    assert stats.kstest(normal((2**17,), random.draw_key(2)), "norm").pvalue > RARE


def test_normal_reaches_the_tails():
    beyond = (abs(normal((SIZE,), random.draw_key(3))) > 4).mean()
    expected = 2 * stats.norm.sf(4)
    assert_within_standard_errors(beyond, expected, np.sqrt(expected / SIZE))


def test_normal_is_uncorrelated_along_the_stream():
    noise = normal((SIZE,), random.draw_key(4))
    correlations = [noise[:-lag] @ noise[lag:] / (SIZE - lag) for lag in range(1, 33)]
    assert_within_standard_errors(correlations, 0, 1 / np.sqrt(SIZE - 32))


def test_rademacher_is_balanced_and_uncorrelated_along_the_stream():
    signs = array(random.rademacher((SIZE,), random.draw_key(5)))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    correlations = [(signs[:-lag] * signs[lag:]).mean() for lag in range(1, 33)]
    assert_within_standard_errors([signs.mean(), *correlations], 0, 1 / np.sqrt(SIZE - 32))


@needs_hash
def test_every_word_maps_to_a_finite_normal_and_its_mirror_image(monkeypatch):
    ends = np.arange(2**12)
    cells = np.concatenate([ends, np.arange(2**12, 2**22, 97)])
    cells = np.concatenate([cells, 2**23 - 1 - cells[::-1]])
    words = (cells << 9 | 0x1FF).astype("uint32")  # the lowest nine bits must not matter
    monkeypatch.setattr(random.hashing, "bits", lambda shape, key: ops.convert_to_tensor(words))
    noise = normal(words.shape, None)
    assert np.all(np.isfinite(noise))
    np.testing.assert_array_equal(noise, -noise[::-1])
    np.testing.assert_allclose(noise, stats.norm.ppf((cells + 0.5) / 2**23), **COMPILED_TOLERANCE)


# Keys


def test_same_key_gives_the_same_noise():
    for draw in (random.normal, random.rademacher):
        first, second = (array(draw((5, 7), random.fold_in(random.draw_key(6), 3))) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_layers_steps_and_weights_do_not_share_noise():
    """Also not one step apart, as layers seeded s and s + 1 would where a backend adds seed and step."""
    generators = [keras.random.SeedGenerator(seed) for seed in range(6)]
    steps = [random.draw_key(generator) for _ in range(6) for generator in generators]
    keys = [key for step in steps for key in (step, random.fold_in(step, 0), random.fold_in(step, 1_000))]
    assert_uncorrelated([normal((2**11,), key) for key in keys])
    assert_uncorrelated([array(random.rademacher((2**11,), key)) for key in keys])


def test_a_seed_generator_advances_and_can_be_repeated():
    generator, again = (keras.random.SeedGenerator(7) for _ in range(2))
    draws = [normal((100,), random.draw_key(generator)) for _ in range(3)]
    repeated = [normal((100,), random.draw_key(again)) for _ in range(3)]
    np.testing.assert_array_equal(draws, repeated)
    assert len({tuple(draw) for draw in draws}) == 3


def test_an_integer_seed_is_one_fixed_key():
    first, second = (normal((10,), random.draw_key(8)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, normal((10,), random.draw_key(keras.random.SeedGenerator(8))))


def test_integer_seeds_are_taken_modulo_32_bits():
    np.testing.assert_array_equal(array(random.draw_key(-1)), array(random.draw_key(2**32 - 1)))


@pytest.mark.parametrize("seed", [None, True, 1.0, "seven"])
def test_draw_key_says_what_a_seed_is(seed):
    with pytest.raises(ValueError, match=r"`seed` must be a keras.random.SeedGenerator or an integer.*__init__"):
        random.draw_key(seed)


def test_fold_in_takes_tensors():
    key = random.draw_key(9)
    number = ops.convert_to_tensor(np.int32(1_003))
    np.testing.assert_array_equal(array(random.fold_in(key, number)), array(random.fold_in(key, 1_003)))


@needs_hash
def test_replicas_have_their_own_keys(monkeypatch):
    keys = []
    for replica in (None, 0, 1):
        monkeypatch.setattr(random, "_replica_id", lambda replica=replica: replica)
        keys.append(random.draw_key(10))
    assert_uncorrelated([normal((2**12,), key) for key in keys])


# Definition


@needs_hash
@pytest.mark.parametrize("key", KEYS)
def test_bits_equal_the_reference_exactly(key):
    expected = reference_bits(10_000, key)
    np.testing.assert_array_equal(array(random.hashing.bits((100, 100), as_key(key))).ravel(), expected)
    bits = compiled(lambda key: random.hashing.bits((100, 100), key))(as_key(key))
    np.testing.assert_array_equal(array(bits).ravel(), expected)


@needs_hash
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("number", [0, 1, 1_000, 2**31])
def test_fold_in_equals_the_reference_exactly(key, number):
    expected = reference_fold_in(key, number)
    np.testing.assert_array_equal(array(random.fold_in(as_key(key), number)), expected)


@needs_hash
@pytest.mark.parametrize("key", KEYS)
def test_noise_is_a_function_of_the_reference_bits(key):
    bits = reference_bits(10_000, key)
    quantiles = stats.norm.ppf(((bits >> 9) + 0.5) / 2**23)
    np.testing.assert_allclose(normal((10_000,), as_key(key)), quantiles, **COMPILED_TOLERANCE)
    np.testing.assert_array_equal(array(random.rademacher((10_000,), as_key(key))), np.where(bits >> 31, -1.0, 1.0))


@needs_hash
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((7, 310_095, 0), (38, 310_126, 5)),
        ((7, 1_998_412, 3), (49, 1_998_458, 1_003)),
        ((7, 1_368_023, 1_002), (63, 1_368_047, 1_003)),
    ],
)
def test_keys_whose_seeds_and_steps_differ_in_the_same_bits_do_not_meet(one, other):
    """These (seed, step, weight) did, while both words of a folded key were combined with the same number."""
    keys = [array(random.fold_in(as_key(inputs[:2]), inputs[2])) for inputs in (one, other)]
    assert keys[0][1] != keys[1][1]


# Noise of an example


DRAWS = [random.normal, random.uniform, random.rademacher]


def in_batches(draw, key, size, total=96, shape=(5, 3), axis=0):
    """Noise of all examples, drawn in batches of a size, with the axis of the examples where it was asked for."""
    drawn = []
    for start in range(0, total, size):
        with random.examples(start, size):
            drawn.append(array(draw((*shape[:axis], size, *shape[axis:]), random.of_examples(key, axis))))
    return np.concatenate(drawn, axis=axis)


@pytest.mark.core
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("size", [1, 24])
def test_the_noise_of_an_example_depends_on_its_place_and_not_on_the_batch(draw, axis, size):
    key = random.draw_key(30)
    whole = in_batches(draw, key, 96, axis=axis)
    np.testing.assert_array_equal(in_batches(draw, key, size, axis=axis), whole)
    assert len(np.unique(np.moveaxis(whole, axis, 0).reshape(96, -1), axis=0)) > 48  # examples differ from each other


@pytest.mark.core
def test_gamma_noise_of_an_example_depends_on_its_place_and_not_on_the_batch():
    def draw(shape, key):
        return random.gamma(np.full(shape, 2.0, "float32"), key)

    whole = in_batches(draw, random.draw_key(31), 12, total=12, axis=1)
    np.testing.assert_allclose(in_batches(draw, random.draw_key(31), 4, total=12, axis=1), whole, rtol=1e-6)
    assert len(np.unique(whole)) == whole.size


@pytest.mark.core
def test_parts_of_an_example_that_were_folded_into_the_first_axis_keep_their_places():
    key = random.draw_key(32)
    with random.examples(0, 8):
        whole = array(random.normal((24, 2), random.of_examples(key)))
    with random.examples(4, 4):
        part = array(random.normal((12, 2), random.of_examples(key)))
    np.testing.assert_array_equal(part, whole[12:])


@pytest.mark.core
def test_noise_of_examples_is_standard_normal_and_independent_between_them():
    with random.examples(1_000, 2**10):
        noise = array(random.normal((2**10, 2**8), random.of_examples(random.draw_key(33)))).astype("float64")
    assert stats.kstest(noise.ravel(), "norm").pvalue > RARE
    neighbours = np.mean(noise[1:] * noise[:-1])
    assert abs(neighbours) < 5 / np.sqrt(noise[1:].size)
    assert abs(noise.mean(axis=1)).max() < 5.5 / np.sqrt(2**8)


@pytest.mark.core
def test_a_draw_without_examples_is_the_same_within_a_batch():
    plain = normal((7, 3), random.draw_key(34))
    with random.examples(5, 7):
        np.testing.assert_array_equal(normal((7, 3), random.draw_key(34)), plain)


# Compilation and shapes


@needs_hash
@pytest.mark.parametrize("draw", [random.normal, random.rademacher])
def test_compiled_equals_eager(draw):
    def noise(key):
        return draw((50, 40), random.fold_in(key, 1))

    key = random.draw_key(11)
    np.testing.assert_allclose(array(compiled(noise)(key)), array(noise(key)), **COMPILED_TOLERANCE)


@needs_tensorflow
def test_a_key_is_derived_by_one_operation_of_a_graph_and_is_that_of_the_operations_written_out():
    import tensorflow as tf

    key = random.draw_key(3)
    trace = tf.function(random.fold_in).get_concrete_function(tf.TensorSpec((2,), "uint32"), tf.TensorSpec((), "int32"))
    kinds = [operation.type for operation in trace.graph.get_operations()]
    assert sum("PartitionedCall" in kind for kind in kinds) == 1
    assert "BitwiseXor" not in kinds
    for number in (0, 7, 2**31 - 1):
        with hashing.plain_operations():
            expected = array(random.fold_in(key, number))
        np.testing.assert_array_equal(array(random.fold_in(key, number)), expected)
        np.testing.assert_array_equal(array(trace(key, tf.constant(number))), expected)


@needs_tensorflow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_compiled_function_advances_its_seed_generator(jit_compile):
    import tensorflow as tf

    generator = keras.random.SeedGenerator(12)
    draw = tf.function(lambda: random.normal((100,), random.draw_key(generator)), jit_compile=jit_compile)
    draws = [array(draw()) for _ in range(3)]
    again = keras.random.SeedGenerator(12)
    eager = [array(random.normal((100,), random.draw_key(again))) for _ in range(3)]
    np.testing.assert_allclose(draws, eager, **COMPILED_TOLERANCE)


@needs_tensorflow
@pytest.mark.parametrize("draw", [random.normal, random.rademacher])
def test_batch_size_may_be_unknown_while_tracing(draw):
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def noise(x):
        return draw((ops.shape(x)[0], 3), random.draw_key(13))

    for batch in (0, 1, 5, 32):
        np.testing.assert_allclose(
            array(noise(np.zeros((batch, 3), "float32"))),
            array(draw((batch, 3), random.draw_key(13))),
            **COMPILED_TOLERANCE,
        )
    assert noise.experimental_get_tracing_count() == 1


@needs_tensorflow
def test_many_shapes_bring_no_warning_of_retracing(monkeypatch):
    import tensorflow as tf

    messages: list[str] = []
    monkeypatch.setattr(tf.get_logger(), "warning", lambda message, *_: messages.append(message))
    key = random.draw_key(14)
    for size in range(101, 112):
        for draw in (random.normal, random.uniform, random.rademacher):
            draw((size, 3), key)
            draw((tf.constant(size), 3), key)
    assert messages == []


@given(shape=st.lists(st.integers(0, 6), max_size=4).map(tuple), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_shape_is_a_view_of_the_flat_stream(shape, seed):
    def flat_and_shaped(key):
        return [draw(size, key) for draw in (random.normal, random.rademacher) for size in ((math.prod(shape),), shape)]

    # JAX would compile every single operation anew for every shape.
    draws = (compiled(flat_and_shaped) if BACKEND == "jax" else flat_and_shaped)(random.draw_key(seed))
    for flat, shaped in (draws[:2], draws[2:]):
        assert keras.backend.standardize_dtype(shaped.dtype) == "float32"
        assert tuple(shaped.shape) == shape
        np.testing.assert_allclose(array(shaped).ravel(), array(flat), **COMPILED_TOLERANCE)


def test_uniform_is_uniform():
    values = array(random.uniform((SIZE,), random.draw_key(3))).astype("float64")
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > RARE


# Gamma


CONCENTRATIONS = [0.3, 1.0, 4.0, 50.0]


@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_gamma_has_the_moments_and_distribution_of_a_gamma(concentration):
    size = 2**17
    noise = array(random.gamma(np.full(size, concentration, "float32"), random.draw_key(20))).astype("float64")
    assert_within_standard_errors(noise.mean(), concentration, np.sqrt(concentration / size))
    # The fourth central moment of a gamma is 3 a^2 + 6 a.
    error = np.sqrt((2 * concentration**2 + 6 * concentration) / size)
    assert_within_standard_errors(np.square(noise - concentration).mean(), concentration, error)
    assert stats.kstest(noise[: 2**14], stats.gamma(concentration).cdf).pvalue > RARE


def test_gamma_has_the_shape_of_its_concentrations_and_is_float32():
    concentration = np.array([[1e-2, 1.0, 1e3], [0.5, 5.0, 50.0]])
    noise = random.gamma(concentration, random.draw_key(21))
    assert tuple(noise.shape) == (2, 3)
    assert keras.backend.standardize_dtype(noise.dtype) == "float32"
    assert np.all(np.isfinite(array(noise)))
    assert np.all(array(noise) >= 0)


def test_gradients_of_gamma_are_those_of_its_moments():
    """d E g / d a = 1 and d E g^2 / d a = 2 a + 1, through the noise."""
    for concentration in CONCENTRATIONS[1:]:
        values = ops.convert_to_tensor(np.full(2**15, concentration, "float32"))
        of_mean = gradients(lambda a: ops.sum(random.gamma(a[0], random.draw_key(22))), [values])
        assert_mean(array(of_mean[0]), 1.0)
        of_square = gradients(lambda a: ops.sum(ops.square(random.gamma(a[0], random.draw_key(22)))), [values])
        assert_mean(array(of_square[0]), 2 * concentration + 1)


def test_gamma_repeats_with_its_key_and_not_with_another():
    concentration = np.full(1_000, 2.0, "float32")
    first, again, other = (array(random.gamma(concentration, random.draw_key(seed))) for seed in (23, 23, 24))
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first, other)[0, 1]) < 5 / np.sqrt(1_000)


def test_gamma_leaves_the_backends_global_noise_alone():
    keras.utils.set_random_seed(0)
    expected = array(keras.random.normal((3,)))
    keras.utils.set_random_seed(0)
    random.gamma(np.ones(3, "float32"), random.draw_key(25))
    np.testing.assert_array_equal(array(keras.random.normal((3,))), expected)
