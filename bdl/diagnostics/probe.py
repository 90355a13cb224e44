"""Function-space figures of a network on a probe set: a few whole functions, evaluated op by op.

Nothing is compiled here: a callback pays for a handful of forward passes, not for a compilation. JAX is the exception,
which compiles each operation for each shape by itself, some hundred of them: there a pass is compiled once, and kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import keras
import numpy as np
from keras import ops

from bdl.diagnostics.quantities import Fit, fit_figures
from bdl.diagnostics.weights import WeightPosterior, aside, at_prior, without_weakest
from bdl.estimators.weights import whole_functions
from bdl.keras_internals import compiled, current_value, flatten_layers, without_gradients
from bdl.latents import without_local_kl
from bdl.layers import mean_weights
from bdl.likelihoods import Likelihood
from bdl.uncounted import counted

ACTIVE_SIGNAL = 0.05
"""Share of a unit's variance that must come from the input for it to count as active."""
PRUNED_SHARES = (0.5, 0.75, 0.9)
"""Shares of the weights, those of the lowest signal-to-noise ratio, that are zeroed to see what they carry."""
_BATCH_SIZE = 512


@dataclass(frozen=True, eq=False)
class Draws:
    """What whole functions make of a data set.

    Args:
        nll: `(num_samples, n)`, in nats per example.
        means: The likelihood's mean, `(num_samples, n, ...)`.
        hidden: Values of each layer's units by layer, `(num_samples, n, units)`.
    """

    nll: np.ndarray
    means: np.ndarray
    hidden: dict[str, np.ndarray]


def draw(
    networks: Any, x: Any, y: Any, likelihood: Likelihood, num_samples: int, layers: tuple[str, ...] = ()
) -> Draws:
    """Evaluates whole functions; seeds and statistics are left as they were.

    Args:
        networks: A network, or a list of them: an ensemble, whose members share the samples.
        x: Inputs.
        y: Labels.
        likelihood: What the outputs mean.
        num_samples: Functions to draw; at least one from each member.
        layers: Names of layers whose units' values to keep; of a Functional or Sequential network only.
    """
    members = networks if isinstance(networks, (list, tuple)) else [networks]
    share, n = max(1, num_samples // len(members)), len(np.asarray(y))
    nll, means, hidden = [], [], []
    for member in members:
        network, names = _with_hidden(member, layers)
        evaluate = _compiled_evaluation(network, likelihood) if keras.backend.backend() == "jax" else _evaluate
        with aside(member), whole_functions(), without_gradients():
            for _ in range(share):
                parts = [evaluate(network, likelihood, a, b) for a, b in _batches(x, y)]
                nll.append(np.concatenate([part[0] for part in parts])[:n])
                means.append(np.concatenate([part[1] for part in parts])[:n])
                hidden.append([np.concatenate([part[2][i] for part in parts])[:n] for i in range(len(names))])
    by_layer = {name: np.stack([values[i] for values in hidden]) for i, name in enumerate(names)}
    return Draws(np.stack(nll), np.stack(means), by_layer)


def fit_of(
    draws: Draws, y: Any, likelihood: Likelihood, null: np.ndarray | None = None, nll_mean: float | None = None
) -> Fit:
    """The figures of a fit; `null` is the NLL of each example under the best constant, that of these labels if None."""
    mean = draws.means.mean(axis=0)
    nll_null = likelihood.null_nll(np.asarray(y)) if null is None else null
    return fit_figures(draws.nll, y, mean, likelihood.is_classifier, nll_mean, nll_null)


def mean_nll(network: keras.Model, x: Any, y: Any, likelihood: Likelihood) -> float:
    """NLL of the posterior mean, nats per example (Q4); that of the network if it has no noise."""
    with aside(network), mean_weights(network) if _has_our_noise(network) else contextlib.nullcontext():
        return float(draw(network, x, y, likelihood, 1).nll.mean())


def noise_cost(
    network: keras.Model, name: str, nll: float, x: Any, y: Any, likelihood: Likelihood, num_samples: int
) -> float:
    """What the noise of the layers of one name costs, nats per example (Q21).

    Args:
        network: The network.
        name: Of layers of bdl.
        nll: Of one draw of the network with all of its noise, nats per example.
        x: Inputs.
        y: Labels.
        likelihood: What the outputs mean.
        num_samples: Functions to draw without that noise.
    """
    with aside(network):
        for layer in flatten_layers(network):
            if layer.name == name and hasattr(layer, "noise_strength"):
                layer.noise_strength.assign(0.0)
        return nll - float(draw(network, x, y, likelihood, num_samples).nll.mean())


def class_numbers(y: Any, likelihood: Likelihood, output_rank: int | None = None) -> np.ndarray:
    """Labels as a likelihood takes them: class numbers of one-hot ones.

    Args:
        y: Labels.
        likelihood: What the outputs mean.
        output_rank: Number of axes of the network's outputs, which one-hot labels share and class numbers do not. None
            where it is not known: then labels that look like one-hot ones are taken for such.

    Example:
    >>> class_numbers([[0.0, 1.0], [1.0, 0.0]], bdl.likelihoods.Categorical())
    array([1, 0])
    """
    y = np.asarray(y)
    void = getattr(likelihood, "ignore_class", None)
    if void is not None and np.any(y == void):
        raise ValueError(
            f"`y` must have a label for every event to be diagnosed, not {void} (`ignore_class`). Give the diagnosis "
            "examples without void events."
        )
    may_be = likelihood.has_class_axis and y.ndim > 1 and y.shape[-1] > 1 and output_rank in (None, y.ndim)
    is_one_hot = may_be and bool(np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=-1) == 1))
    return y.argmax(axis=-1) if is_one_hot else y


def pruned_accuracy(
    network: keras.Model, posteriors: list[WeightPosterior], x: Any, y: Any, likelihood: Likelihood
) -> dict[str, float] | None:
    """Accuracy of the posterior mean without its weakest weights, by the percentage that is zeroed (Q11).

    None for layers of other libraries, whose noise cannot be turned off.
    """
    if not _has_our_noise(network):
        return None
    found = {}
    for share in PRUNED_SHARES:
        with without_weakest(network, posteriors, share), mean_weights(network):
            found[f"{share:.0%}"] = fit_of(draw(network, x, y, likelihood, 1), y, likelihood).accuracy or 0.0
    return found


def prior_draws(
    network: keras.Model, posteriors: list[WeightPosterior], x: Any, y: Any, likelihood: Likelihood, num_samples: int
) -> Draws:
    """The same for networks drawn from the prior (Q5)."""
    with at_prior(network, posteriors):
        return draw(network, x, y, likelihood, num_samples)


def function_signal(draws: Draws, y: Any, likelihood: Likelihood) -> float:
    """`sd_x(E_q f) / sd(y)`, with f the likelihood's mean; over classes, of the sum of variances (Q13)."""
    y = np.asarray(y)
    if likelihood.is_classifier:
        # Of the one-hot label of each event, 1 - sum f^2; of label 1 alone it is half of that of two classes.
        events = y.reshape(len(y), -1).T
        shares = [np.unique(event, return_counts=True)[1] / len(y) for event in events]
        variance = float(sum(1.0 - np.sum(share**2) for share in shares)) / (1 if likelihood.has_class_axis else 2)
    else:
        variance = float(y.reshape(len(y), -1).astype("float64").var(axis=0).sum())
    return float(np.sqrt(max(_signal_variance(draws.means).sum(), 0.0) / max(variance, 1e-12)))


def function_variance(draws: Draws) -> float:
    """`E_x Var_q f`, summed over outputs (Q13)."""
    return float(draws.means.var(axis=0, ddof=1).reshape(draws.means.shape[1], -1).mean(axis=0).sum())


def active_units(hidden: np.ndarray) -> float:
    """Share of units whose value says something about the input (Q12).

    Args:
        hidden: `(num_samples, n, ..., units)`.

    Returns:
        Share of units of which `Var_x(E_q h)` is at least 5 % of `Var_x(E_q h) + E_x Var_q h`; constant ones are dead.
    """
    values = hidden.reshape(hidden.shape[0], -1, hidden.shape[-1]).astype("float64")
    signal = np.maximum(_signal_variance(values), 0.0)
    noise = values.var(axis=0, ddof=1).mean(axis=0) if len(values) > 1 else 0.0
    total = signal + noise
    return float(np.mean((total > 1e-12) & (signal >= ACTIVE_SIGNAL * total)))


def _has_our_noise(network: keras.Model) -> bool:
    return any(hasattr(layer, "noise_strength") for layer in flatten_layers(network))


def _signal_variance(values: np.ndarray) -> np.ndarray:
    """`Var_x(E_q f)` of each output, without the bias that few samples of q put into it."""
    samples = len(values)
    values = values.reshape(*values.shape[:2], -1).astype("float64")
    centre = values.mean(axis=0)
    observed = centre.var(axis=0)
    if samples == 1:
        return observed
    return observed - np.var(values - centre, axis=1).sum(axis=0) / (samples * (samples - 1))


def _with_hidden(network: Any, layers: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The network with the named layers' outputs besides its own, where its graph is known."""
    known = {layer.name: layer for layer in getattr(network, "layers", [])}
    names = [name for name in layers if name in known]
    inputs = getattr(network, "inputs", None)
    if not names or not inputs:
        return network, []
    try:
        hidden = [known[name].output for name in names]
        return keras.Model(network.inputs, [network.outputs[0], *hidden]), names
    except (AttributeError, ValueError):  # a layer called twice, or not on the way to the output
        return network, []


def _evaluate(network: Any, likelihood: Likelihood, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    x = keras.tree.map_structure(ops.convert_to_tensor, x)
    nll, means, hidden = _outputs(network, likelihood, x, ops.convert_to_tensor(np.asarray(y)))
    return _numpy(nll), _numpy(means), [_numpy(values) for values in hidden]


def _outputs(network: Any, likelihood: Likelihood, x: Any, y: Any) -> tuple[Any, Any, list[Any]]:
    outputs = network(x, training=False)
    hidden: list[Any] = []
    if isinstance(outputs, (list, tuple)):
        outputs, *hidden = outputs
    return likelihood.nll(y, outputs), likelihood.mean(outputs), hidden


_COMPILED: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()
"""Compiled passes by network and likelihood, so that a training's later measurements find them."""


def _compiled_evaluation(network: Any, likelihood: Likelihood) -> Callable[..., Any]:
    """`_evaluate` for one network, as a compiled function of the values of all variables, within whole functions."""
    known = _COMPILED.setdefault(network, {})
    variables = [*network.variables, *likelihood.variables]
    held = ref(network)  # for what is kept must not keep the network

    def of_values(values: list[Any], x: Any, y: Any) -> Any:
        scope = keras.StatelessScope(list(zip(variables, values, strict=True)), collect_losses=True)
        with scope, without_local_kl(), counted():
            found = _outputs(held(), likelihood, x, y)
            return found, [scope.get_current_value(variable) for variable in variables]

    function = known.setdefault(id(likelihood), compiled(of_values))

    def evaluate(_: Any, __: Likelihood, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        values = [current_value(variable) for variable in variables]
        (nll, means, hidden), after = function(values, x, np.asarray(y))
        for variable, value in zip(variables, after, strict=True):
            if not variable.trainable:  # seeds, which have moved on
                variable.assign(value)
        return _numpy(nll), _numpy(means), [_numpy(each) for each in hidden]

    return evaluate


def _batches(x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
    """Batches of one size, the last filled up with the first rows: each shape costs compilations of its own."""
    n = len(np.asarray(y))
    size = min(n, _BATCH_SIZE)
    for start in range(0, n, size):
        rows = np.arange(start, start + size) % n
        yield keras.tree.map_structure(lambda leaf, rows=rows: np.asarray(leaf)[rows], x), np.asarray(y)[rows]


def _numpy(values: Any) -> np.ndarray:
    return ops.convert_to_numpy(values)
