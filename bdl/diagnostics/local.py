"""Local latent variables (Q19): what codes and alignments say about the input, from the posteriors that layers report.

With `q(z | x_i)` the posterior of example i of the probe and `q(z) = 1/n sum_i q(z | x_i)` their mixture:

    KL = E_x KL(q(z | x) || p)                                  nats per example
    I  = E_x E_q [log q(z | x) - log q(z)] <= log n             nats per example
    A  = share of code units with Cov_x(E_q z) > 0.01
    H  = mean over queries of H(q) / log(number of keys)        0 (one key) to 1 (uniform)

For a prior that does not depend on x, `KL = I + KL(q(z) || p)` (Hoffman & Johnson 2016, "ELBO surgery", eq. 8), so that
I is at most KL: the rest of the KL is paid for codes that are the same whatever the input.

Sources: Burda et al. 2016, "Importance weighted autoencoders", section 5.2 (active units); Hoffman & Johnson 2016.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import keras
import numpy as np
from keras import ops

from bdl.diagnostics.quantities import LocalLatents
from bdl.diagnostics.weights import aside
from bdl.estimators.weights import whole_functions
from bdl.latents import ACTIVE_VARIANCE, Alignment, GaussianCode, Latent, collect_latents, take_local_kl

_EXAMPLES = 256
_BATCH_SIZE = 64
_MAX_VALUES = 2**24  # probabilities and means to hold: long sequences are measured on fewer examples
_DRAWS = 4  # samples of each code
_MAX_TERMS = 2**26  # units of pairs of examples to compare: half a second; wide codes are compared on fewer examples
_TINY = float(np.finfo("float32").tiny)


def local_latents(network: keras.Layer, x: Any) -> LocalLatents | None:
    """Measures the local latent variables of a network on a probe; the network is left as it was.

    One function of the network (one draw of its weights) is evaluated in training mode on up to 256 inputs. `kl` is
    what its layers add by `add_local_kl`; where they add nothing, that of the alignments that report a prior.

    Args:
        network: A built Keras network, not the `VariationalModel` around it.
        x: Inputs.

    Returns:
        Sums of `kl` and `mutual_information` over the layers, the share of active units over all code units, the mean
        of `attention_entropy` over the layers; None where there is no local latent variable at all.

    Example:
    >>> class Code(keras.Layer):
    ...     def call(self, x):
    ...         kl = 0.5 * keras.ops.sum(keras.ops.square(x), axis=-1)  # KL(N(x, 1) || N(0, 1))
    ...         bdl.layers.add_local_kl(self, kl)
    ...         bdl.layers.report_latent(self, bdl.layers.GaussianCode(mean=x, scale=keras.ops.ones_like(x)))
    ...         return x
    >>> x = np.random.default_rng(0).normal(size=(256, 1)).astype("float32")
    >>> found = local_latents(keras.Sequential([keras.Input((1,)), Code()]), x)
    >>> round(found.kl, 1), round(found.mutual_information, 2), found.active_units  # I is log(2) / 2 in the limit
    (0.5, 0.35, 1.0)
    """
    divergences, latents = _observe(network, x)
    if divergences is None and not latents:
        return None
    codes = [latent for latent in latents if isinstance(latent, GaussianCode)]
    alignments = [latent for latent in latents if isinstance(latent, Alignment)]
    added = None if divergences is None else float(np.mean(divergences))
    kl = _sum([alignment_kl(alignment) for alignment in alignments]) if added is None else added
    units = [activity for code in codes if (activity := active_units(code)) is not None]
    entropies = [entropy for each in alignments if (entropy := attention_entropy(each)) is not None]
    return LocalLatents(
        kl=_finite(kl),
        active_units=float(np.mean(np.concatenate(units))) if units else None,
        mutual_information=_finite(_sum([mutual_information(latent) for latent in latents])),
        attention_entropy=float(np.mean(entropies)) if entropies else None,
    )


def active_units(code: GaussianCode) -> np.ndarray | None:
    """Which units of a code vary with the input: `Cov_x(E_q z) > 0.01`.

    Args:
        code: Of at least two examples; a unit at each position of a sequence is a unit of its own.

    Returns:
        Truth values `(units,)`; None for a single example, or means that are not finite.

    Example:
    >>> active_units(GaussianCode(mean=np.array([[-1.0, 0.0], [1.0, 0.01]]), scale=1.0)).tolist()
    [True, False]
    """
    mean = code.to_numpy().mean.astype("float64")
    if len(mean) < 2 or not np.all(np.isfinite(mean)):
        return None
    return mean.reshape(len(mean), -1).var(axis=0) > ACTIVE_VARIANCE


def attention_entropy(alignment: Alignment) -> float | None:
    """Mean over queries of `H(q) / log(keys)`, with only existing keys and queries: 0 for one key, 1 for uniform.

    Returns:
        A number from 0 to 1; None where no query has a choice of two keys.

    Example:
    >>> attention_entropy(Alignment(np.array([[0.5, 0.5, 0.0]]), key_mask=np.array([[True, True, False]])))
    1.0
    """
    q, keys, exists = _rows(alignment)
    counted = exists & (keys > 1)
    if not counted.any():
        return None
    return float(np.clip(_entropy(q[counted]) / np.log(keys[counted]), 0.0, 1.0).mean())


def mutual_information(latent: Latent) -> float | None:
    """`I(x; z)` under the posterior, for the examples at hand.

    Of an alignment `H(E_x q) - E_x H(q)`, exact, summed over heads and queries, which bounds their joint information
    from above. Of a code a Monte Carlo mean with fixed seed, of 4 samples per example.

    Returns:
        Nats per example, from 0 to log n; None for fewer than two examples, or values that are not finite.

    Example:
    >>> mutual_information(Alignment(np.eye(4)))  # each example attends to a key of its own: log 4
    1.386
    >>> mutual_information(Alignment(np.full((4, 4), 0.25)))
    0.0
    """
    information = _code_information(latent) if isinstance(latent, GaussianCode) else _alignment_information(latent)
    return None if information is None else float(min(max(information[0], 0.0), math.log(information[1])))


def alignment_kl(alignment: Alignment) -> float | None:
    """Mean over examples of `KL(q || p)` to the reported prior, summed over heads and queries, in nats.

    Example:
    >>> alignment_kl(Alignment(np.array([[1.0, 0.0]]), prior_probabilities=np.array([[0.5, 0.5]])))
    0.693
    """
    if alignment.prior_probabilities is None:
        return None
    q, _, exists = _rows(alignment)
    p = _rows(dataclasses.replace(alignment, probabilities=alignment.to_numpy().prior_probabilities))[0]
    if not exists.any():
        return None
    divergence = np.sum(q * np.log(np.maximum(p, _TINY)), axis=-1)
    return float(np.sum(-_entropy(q) - divergence) / len(q))


def _code_information(code: GaussianCode) -> tuple[float, int] | None:
    """The estimate and the number of examples that it is of."""
    code = code.to_numpy()
    mean, scale = (values.reshape(len(values), -1).astype("float64") for values in (code.mean, code.scale))
    size = min(len(mean), max(2, math.isqrt(_MAX_TERMS // (_DRAWS * mean.shape[1]))))
    mean, scale = mean[:size], np.maximum(scale[:size], _TINY)
    if size < 2 or not (np.all(np.isfinite(mean)) and np.all(np.isfinite(scale))):
        return None
    noise = np.random.default_rng(0).standard_normal((size, _DRAWS, mean.shape[1]))
    log_scale = np.log(scale).sum(axis=1)
    total = 0.0
    for i in range(size):
        z = mean[i] + scale[i] * noise[i]
        # log q(z | x_j) for every j, without the constant that cancels; differences first, for scales may be tiny
        log_q = -0.5 * np.sum(((z[:, None] - mean) / scale) ** 2, axis=-1) - log_scale
        total += float(np.mean(log_q[:, i] - np.logaddexp.reduce(log_q, axis=1)))
    return total / size + math.log(size), size


def _alignment_information(alignment: Alignment) -> tuple[float, int] | None:
    q, _, exists = _rows(alignment)
    if len(q) < 2 or not exists.any():
        return None
    # A query that only some examples have is averaged over those, and counts by their share.
    count = exists.sum(axis=0)
    mean = q.sum(axis=0) / np.maximum(count, 1)[..., None]
    return float(np.sum(count * _entropy(mean) - _entropy(q).sum(axis=0)) / len(q)), len(q)


def _rows(alignment: Alignment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities over existing keys, the number of these, and which queries exist; what does not is zero."""
    alignment = alignment.to_numpy()
    q = alignment.probabilities.astype("float64")
    mask = np.ones(q.shape, bool) if alignment.key_mask is None else alignment.key_mask
    q = np.where(mask, q, 0.0)
    total, keys = q.sum(axis=-1), mask.sum(axis=-1)
    exists = total > 0.0  # False also of NaN, which softmax makes of a row without a key
    if alignment.query_mask is not None:
        exists = exists & alignment.query_mask
    q = np.where(exists[..., None], q, 0.0) / np.where(exists, total, 1.0)[..., None]
    return q, keys, exists


def _entropy(q: np.ndarray) -> np.ndarray:
    """In nats, over the last axis."""
    return -np.sum(q * np.log(np.where(q > 0.0, q, 1.0)), axis=-1)


def _observe(network: keras.Layer, x: Any) -> tuple[np.ndarray | None, list[Latent]]:
    """Local divergences `(n,)` that the layers add, and the posteriors that they report, one for each call."""
    divergences: list[np.ndarray] = []
    parts: dict[tuple[str, int], list[Latent]] = {}
    held = 0
    for start in range(0, min(_EXAMPLES, len(keras.tree.flatten(x)[0])), _BATCH_SIZE):
        rows = slice(start, start + _BATCH_SIZE)
        batch = keras.tree.map_structure(lambda leaf, rows=rows: ops.convert_to_tensor(np.asarray(leaf)[rows]), x)
        # Seeds go back after each batch, so that all of them see one function: only the input makes codes differ.
        with aside(network), whole_functions(), collect_latents() as reports:
            network(batch, training=True)
            kl = take_local_kl(network)
        if kl is not None:
            divergences.append(ops.convert_to_numpy(kl))
        calls: Counter[str] = Counter()
        for report in reports:
            parts.setdefault((report.layer, calls[report.layer]), []).append(report.latent)
            calls[report.layer] += 1
            held += sum(value.size for value in vars(report.latent).values() if value is not None)
        if held >= _MAX_VALUES or (kl is None and not reports):
            break
    latents = [_joined(batches) for batches in parts.values()]
    return (np.concatenate(divergences) if divergences else None), latents


def _joined(batches: list[Latent]) -> Latent:
    names = [field.name for field in dataclasses.fields(batches[0]) if getattr(batches[0], field.name) is not None]
    return type(batches[0])(**{name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names})


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
