"""Statistical checks of `bdl.random` in NumPy and SciPy: is the noise normal, and is neighbouring noise unrelated?

Each check is one number whose distribution under perfect randomness is known, and its p-value. Two-sided throughout:
too even is not random either.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from random_streams import (
    NEIGHBOURS,
    Words,
    fold_in,
    layer_keys,
    normals,
    reference_words,
    signs,
    step_keys,
    words,
)
from scipy import stats

Array = NDArray[Any]

NUM_STREAMS = 512  # neighbouring keys, of which all pairs are compared
NUM_DRAWS = 4096  # of each of them
LONG_DRAW = 2**22  # of one key
MAX_LAG = 64
TAIL = 4.0  # standard deviations: the far tail, 266 of 2^22 draws


@dataclass(frozen=True)
class Check:
    """Outcome of one test.

    Attributes:
        test: What was tested.
        streams: On which streams.
        statistic: Its name.
        value: Its value.
        p_value: Probability of a value at least as extreme under perfect randomness.
    """

    test: str
    streams: str
    statistic: str
    value: float
    p_value: float

    def alarms(self, threshold: float) -> bool:
        """Whether the p-value is too small, or not a number, as infinite noise would make it."""
        return not self.p_value >= threshold


def all_checks(seed: int) -> Iterator[Check]:
    """Every check of this file, on streams that start at this seed."""
    one = layer_keys(1, seed)
    draws = {"one key": normals(one, LONG_DRAW)}
    flips = {"one key": signs(one, LONG_DRAW)}
    for name, keys_of in NEIGHBOURS.items():
        draws[name] = normals(keys_of(NUM_STREAMS, seed), NUM_DRAWS)
        flips[name] = signs(keys_of(NUM_STREAMS, seed), NUM_DRAWS)
    yield from equality(seed)
    for name in draws:
        flat = draws[name].ravel().astype(np.float64)  # sums of millions of float32 would lose the digits that matter
        yield from normality(name, flat)
        yield from lag_correlations(name, flat)
        yield of_z("balance of signs", name, flips[name].mean() * np.sqrt(flips[name].size))
    for name in NEIGHBOURS:
        yield from correlations("correlation of normals", name, draws[name])
        yield from correlations("correlation of normals, shifted", name, draws[name], shift=1)
        yield from correlations("correlation of magnitudes", name, normal_scores(abs(draws[name])))
        yield from correlations("correlation of signs", name, flips[name])
    yield from uniformity(seed)
    yield from duplicates(seed)
    yield from avalanche(seed)


def equality(seed: int) -> Iterator[Check]:
    """The words are those of the reference; no p-value other than 0 or 1."""
    for name, keys_of in NEIGHBOURS.items():
        keys = keys_of(NUM_STREAMS, seed)
        unequal = int((words(keys, NUM_DRAWS) != reference_words(keys, NUM_DRAWS)).sum())
        yield Check("equality with NumPy", name, "unequal words", unequal, float(unequal == 0))


def normality(name: str, draws: Array) -> Iterator[Check]:
    """Moments, two tests of the whole distribution, and the far tail."""
    n = draws.size
    yield of_z("mean", name, draws.mean() * np.sqrt(n))
    for power, moment, variance in ((2, 1, 2), (3, 0, 15), (4, 3, 96)):
        yield of_z(f"moment {power}", name, ((draws**power).mean() - moment) / np.sqrt(variance / n))
    draws = np.sort(draws)
    distance, p_value = stats.kstest(draws, "norm")
    yield Check("Kolmogorov-Smirnov", name, "D sqrt(n)", distance * np.sqrt(n), p_value)
    weights = 2 * np.arange(n) + 1
    distance = -n - (weights * (stats.norm.logcdf(draws) + stats.norm.logsf(draws)[::-1])).mean()
    yield Check("Anderson-Darling", name, "A^2", distance, two_sided(anderson_darling_cdf(distance)))
    beyond = int((abs(draws) > TAIL).sum())
    p_value = stats.binomtest(beyond, n, 2 * stats.norm.sf(TAIL)).pvalue
    yield Check(f"draws beyond {TAIL:.0f}", name, "observed / expected", beyond / n / stats.norm.sf(TAIL) / 2, p_value)


def anderson_darling_cdf(z: float) -> float:
    """Limiting distribution of the statistic (Marsaglia & Marsaglia 2004, error below 2e-6)."""
    if z < 2:
        series = np.polyval([0.00168691, -0.0116720, 0.0347962, -0.0649821, 0.247105, 2.00012], z)
        return float(np.exp(-1.2337141 / z) / np.sqrt(z) * series)
    return float(np.exp(-np.exp(np.polyval([-0.0003146, 0.008056, -0.082433, 0.43424, -2.30695, 1.0776], z))))


def lag_correlations(name: str, draws: Array) -> Iterator[Check]:
    """Each draw against the ones 1 to 64 places further on."""
    z = np.array([draws[:-lag] @ draws[lag:] / np.sqrt(draws.size - lag) for lag in range(1, MAX_LAG + 1)])
    yield from of_many_z(f"correlation, lags 1-{MAX_LAG}", name, z)


def normal_scores(magnitudes: Array) -> Array:
    """Maps the magnitudes of normals to normals, of which the distribution of a correlation is known."""
    return stats.norm.ppf(np.clip(2 * stats.norm.cdf(magnitudes) - 1, 2.0**-25, 1 - 2.0**-25))


def correlations(test: str, name: str, streams: Array, shift: int = 0) -> Iterator[Check]:
    """All pairs of streams, one of them shifted: the largest of the correlations, and the sum of their squares."""
    n = streams.shape[1] - shift
    rows, others = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (streams[:, :n], streams[:, shift:]))
    product = rows.astype(np.float64) @ others.T.astype(np.float64)
    r = product.ravel() if shift else product[np.triu_indices(len(product), 1)]
    largest = abs(r).max()
    tail = 2 * stats.t.sf(largest * np.sqrt((n - 1) / max(1 - largest**2, 1e-300)), n - 1)  # equal streams have r = 1
    yield Check(test, name, f"max |r| sqrt(n) of {r.size}", largest * np.sqrt(n), any_of(tail, r.size))
    # Correlations of independent normals are uncorrelated in pairs, so their squares add up as in Schott (2005).
    excess = (r**2).sum() - r.size / n
    yield of_z(test, name, excess / np.sqrt(r.size * 2 * (n - 1) / (n**2 * (n + 2))), "z of sum r^2")


def uniformity(seed: int) -> Iterator[Check]:
    """Pairs of bytes fill the 256 x 256 square evenly: the highest and the lowest byte that `normal` uses."""
    stream = words(layer_keys(1, seed), 2 * LONG_DRAW)[0]
    pairs = {"word i, word i + 1 of one key": (stream[::2], stream[1::2])}
    for name, keys_of in NEIGHBOURS.items():
        streams = words(keys_of(2 * NUM_STREAMS, seed), NUM_DRAWS)
        pairs[f"word i of two neighbours: {name}"] = (streams[::2].ravel(), streams[1::2].ravel())
    for (name, (left, right)), shift in itertools.product(pairs.items(), (24, 9)):
        cells = (left >> np.uint32(shift) & np.uint32(255)) << np.uint32(8) | right >> np.uint32(shift) & np.uint32(255)
        counts = np.bincount(cells, minlength=2**16)
        chi_square = float((counts.astype(float) ** 2).sum() * 2**16 / left.size - left.size)
        p_value = two_sided(stats.chi2.cdf(chi_square, 2**16 - 1))
        yield Check(f"2-d uniformity, bits {shift}-{shift + 7}", name, "chi-square of 65535", chi_square, p_value)


def duplicates(seed: int) -> Iterator[Check]:
    """Equal words in different streams are as many as chance makes, and no two keys are equal.

    Within one stream no 32-bit word comes twice, for the hash is a permutation of the index: a flaw that only shows
    in the 23 bits of a normal after millions of draws of one key, as fewer equal draws than chance makes.
    """
    for name, keys_of in NEIGHBOURS.items():
        streams = words(keys_of(NUM_STREAMS, seed), NUM_DRAWS)
        pairs = NUM_DRAWS**2 * NUM_STREAMS * (NUM_STREAMS - 1) / 2
        yield of_count("equal words across streams", name, equal_pairs(streams), pairs / 2**32)
        left, right = (part.astype(np.uint64) for part in (streams[:, :-1], streams[:, 1:]))
        yield of_count("equal pairs of words", name, equal_pairs(left << np.uint64(32) | right), pairs / 2**64)
    draws = words(layer_keys(1, seed), 2**20)[0] >> np.uint32(9)
    yield of_count("equal 23-bit words of a stream", "one key", equal_pairs(draws), draws.size**2 / 2 / 2**23)
    # Few layers but many numbers: keys that differ in all three inputs must not collide more than 64 bits do.
    steps = np.concatenate([step_keys(2**11, seed + layer) for layer in range(4)])
    keys = fold_in(steps, np.arange(2**11)).astype(np.uint64)
    packed = keys[..., 0] << np.uint64(32) | keys[..., 1]
    yield of_count(
        "equal keys", "4 layers x 2048 steps x 2048 weights", equal_pairs(packed), packed.size**2 / 2 / 2**64
    )


def equal_pairs(values: Array) -> int:
    """Number of pairs of equal values."""
    values = np.sort(values, axis=None)
    edges = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1], [True]]))
    repeats = np.diff(edges)
    return int((repeats * (repeats - 1) // 2).sum())


def avalanche(seed: int) -> Iterator[Check]:
    """Flipping one bit of what makes a word flips every bit of the word half of the time, and so do two flips.

    Inputs as small as a real network's come first, for that is where a weak hash shows.
    """
    steps = np.concatenate([step_keys(2**5, layer) for layer in range(16 * seed, 16 * seed + 2**4)])
    network = words(fold_in(steps, np.arange(2**4)).reshape(-1, 2), 2**7)
    for name, table in (("layer, step, weight, index", network), ("index", words(layer_keys(1, seed), 2**20))):
        corners = table.reshape((2,) * (table.size.bit_length() - 1))  # an axis for each bit that can flip
        for flips in (1, 2):
            # With two flips the difference is taken twice: no corner of a square may be predictable from the others.
            axes = itertools.combinations(range(corners.ndim), flips)
            z = np.stack([flip_z(np.bitwise_xor.reduce(corners, axis=chosen)) for chosen in axes])
            yield from of_flips(f"avalanche, {flips} flipped", f"bits of {name}", z, corners.size >> flips)
    generator = np.random.default_rng(seed)
    keys, numbers = (generator.integers(0, 2**32, shape, dtype=np.uint32) for shape in ((64, 2), 64))
    base = folded_words(keys, numbers)
    flips = np.uint32(1) << np.arange(32, dtype=np.uint32)
    inputs = {
        "seed": [(keys ^ np.array([flip, 0], dtype=np.uint32), numbers) for flip in flips],
        "step": [(keys ^ np.array([0, flip], dtype=np.uint32), numbers) for flip in flips],
        "weight": [(keys, numbers ^ flip) for flip in flips],
    }
    for name, flipped in inputs.items():
        z = np.stack([flip_z(base ^ folded_words(*arguments)) for arguments in flipped])
        yield from of_flips("avalanche, 1 flipped", f"all 32 bits of the {name}", z, base.size)


def folded_words(keys: Words, numbers: Words) -> Words:
    """The first 32 words of each key with each number folded in."""
    return words(fold_in(keys, numbers).reshape(-1, 2), 32)


def flip_z(differences: Words) -> Array:
    """For each bit of a word, how far from half of the differences have it, in standard errors."""
    octets = differences.reshape(-1, 1).view(np.uint8)
    ones = np.unpackbits(octets, axis=1, bitorder="little").sum(axis=0, dtype=np.int64)
    return (ones - len(octets) / 2) / np.sqrt(len(octets) / 4)


def of_flips(test: str, name: str, z: Array, count: int) -> Iterator[Check]:
    """Mean number of flipped bits in a word, then the bias of each bit of input and output."""
    mean = float(16 + z.sum(axis=1).mean() * np.sqrt(1 / (4 * count)))
    p_value = of_z(test, name, z.sum() / np.sqrt(z.size)).p_value
    yield Check(test, name, "mean flipped bits of 32", mean, p_value)
    yield from of_many_z(test, name, z)


def of_many_z(test: str, name: str, z: Array) -> Iterator[Check]:
    """Many standard normals: the largest and the sum of squares."""
    largest = float(abs(z).max())
    yield Check(test, name, f"max |z| of {z.size}", largest, any_of(2 * stats.norm.sf(largest), z.size))
    chi_square = float((z**2).sum())
    yield Check(test, name, f"chi-square of {z.size}", chi_square, two_sided(stats.chi2.cdf(chi_square, z.size)))


def of_z(test: str, name: str, z: float, statistic: str = "z") -> Check:
    """One standard normal."""
    return Check(test, name, statistic, float(z), float(2 * stats.norm.sf(abs(z))))


def of_count(test: str, name: str, count: int, expected: float) -> Check:
    """A number of rare events; `count` is compared with a Poisson distribution."""
    poisson = stats.poisson(expected)
    p_value = min(1.0, 2 * min(poisson.cdf(count), poisson.sf(count - 1)))
    return Check(test, name, f"count, expected {expected:.4g}", count, p_value)


def any_of(tail: float, trials: int) -> float:
    """Probability that at least one of many trials falls into its tail."""
    return float(-np.expm1(trials * np.log1p(-tail)))


def two_sided(cumulative: float) -> float:
    """P-value of a statistic that may be neither too large nor too small."""
    return float(2 * min(cumulative, 1 - cumulative))
