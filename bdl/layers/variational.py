"""The mechanism: any Keras layer plus a posterior over its weights.

The wrapped layer keeps its own weights, and they are the posterior means; the wrapper adds the scales. A call evaluates
the layer as a pure function of its weights (`stateless_call`) with sampled values in their place.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from bdl import posteriors, priors, random
from bdl.estimators import linear
from bdl.estimators import weights as estimators
from bdl.estimators.stateless import call_with_values
from bdl.estimators.weights import ESTIMATORS, FIRST_FREE_STREAM, STAGE_ESTIMATORS, FactoredWeight, Noise, SampledWeight
from bdl.keras_internals import adopt_signatures, flatten_layers, is_sparse
from bdl.layers.freezing import FrozenWithLayer
from bdl.layers.noise_layers import SavesSeed
from bdl.posteriors import AnyPosterior, FactorPosterior, MeanFieldNormal
from bdl.priors import Normal, Prior, TiedMean, WidthNormal
from bdl.protocols import GaussianVariables
from bdl.random import Tensor
from bdl.uncounted import note_reading, warn_if_uncounted

DEFAULT_PRIOR = TiedMean(WidthNormal(), mean_prior=Normal(0.0, 3.0))
"""Gaussian around fitted means: variational EM. docs/explain/defaults.md says why."""

DEFAULT_POSTERIOR = MeanFieldNormal()


@dataclass(frozen=True)
class _Weights:
    """The variables of a wrapped layer, held where Keras does not count them as the wrapper's own."""

    variables: tuple[keras.Variable, ...]


@keras.saving.register_keras_serializable(package="bdl")
class Variational(FrozenWithLayer, SavesSeed, keras.layers.Wrapper):
    """Makes any Keras layer variational: some of its weights get a posterior and a prior.

    The layer samples in training and at inference; within `bdl.mean_weights(model)` it uses the posterior mean. Its
    `kl_divergence()` belongs in the objective once per step, divided by the number of training examples, which
    `bdl.VariationalModel` and `bdl.ELBO` do; a plain `compile(loss=...)` would drop it.

    A layer that is called several times in one pass (a shared layer) draws new noise on each call. A recurrent layer,
    `keras.layers.Bidirectional` or `TimeDistributed` in here is called once: one draw serves all time steps. (The other
    way round, `TimeDistributed(Variational(layer))`, Keras calls the layer at every step, and each has its own draw.)

    It is called with whatever arguments the wrapped layer takes: several inputs, masks, `initial_state`,
    `return_attention_scores`. Attributes of the wrapped layer can be read from it: `layer.units`, `layer.activation`,
    and `layer.kernel`, which is the posterior mean. Set them on `layer.layer`.

    A posterior is trainable while its weight is, so `trainable = False` freezes it, whether it is set here or on the
    wrapped layer.

    Args:
        layer: Any Keras layer but a stateful one. A built layer keeps its weights, which become the posterior means.
        estimator: `"reparameterization"` for any layer (Dense and EinsumDense train with antithetic noise:
            every second example has the noise of the first with its sign reversed); `"flipout"` or
            `"local_reparameterization"` for layers that are linear in their kernel (Dense, EinsumDense, convolutions).
            Local reparameterization is exact for Dense on vectors; on convolutions and sequences it redraws the noise
            at every position, so that only the marginals match; it is used there in training, and whole weights are
            drawn outside training.
        prior: `bdl.priors.Prior` or its name. Default: `TiedMean(WidthNormal(), mean_prior=Normal(0, 3))`, a
            Gaussian around fitted means (variational EM, not full Bayes).
        posterior: `bdl.posteriors.Posterior` or `FactorPosterior`, or its name. Default: `MeanFieldNormal()`.
            `MatrixNormal()` has fewer scales; `LowRankNormal()` correlates the weights and needs
            `"reparameterization"`; `Rank1()` replaces sampled weights by factors.
        weights: Names of the weights that get a posterior, each the last part of a variable's path, or a longer end
            such as `"query/kernel"`. A mapping from name to `(prior, posterior)` gives each weight its own.
        seed: Integer seed of the layer's noise, or None for a random one.
        **kwargs: `name`, `dtype` and other arguments of `keras.Layer`.

    Input and output shape: those of the wrapped layer.

    Raises:
        ValueError: if an argument is of the wrong kind; when built, if a weight does not exist, carries a regularizer
            (which would be a second prior), or cannot be used with the estimator.

    Sources: Blundell et al. 2015 (arXiv 1505.05424); Wen et al. 2018 (1803.04386); Kingma et al. 2015 (1506.02557);
    Dusenberry et al. 2020 (2005.07186).

    Example:
    >>> layer = Variational(keras.layers.Dense(3), estimator="flipout", seed=0)
    >>> layer(np.ones((2, 4))).shape == (2, 3) and float(layer.kl_divergence()) > 0
    True
    """

    def __init__(
        self,
        layer: keras.Layer,
        estimator: str = "reparameterization",
        prior: Prior | str | dict[str, Any] = DEFAULT_PRIOR,
        posterior: AnyPosterior | str | dict[str, Any] = DEFAULT_POSTERIOR,
        weights: Sequence[str] | Mapping[str, tuple[Any, Any]] = ("kernel",),
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.Layer):
            raise ValueError(f"`layer` must be a keras.Layer instance, such as keras.layers.Dense(3), not {layer!r}.")
        if estimator not in ESTIMATORS:
            raise ValueError(f"`estimator` must be one of {ESTIMATORS}, not {estimator!r}.")
        if getattr(layer, "stateful", False):
            raise ValueError(
                "`layer` must not be stateful: every call draws new weights, so that a sequence in several calls would "
                "not be evaluated by one network. Pass `initial_state`, or the whole sequence."
            )
        kwargs.setdefault("dtype", layer.dtype_policy)
        kwargs.setdefault("activity_regularizer", getattr(layer, "activity_regularizer", None))
        kwargs.setdefault("autocast", layer.autocast)  # token numbers, for one, must not be rounded
        super().__init__(layer, **kwargs)
        adopt_signatures(self, layer)
        self.estimator = estimator
        self._families = _families(weights, prior, posterior)
        _check_independence(self._families, estimator)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(self._noise_seed())
        self.supports_masking = layer.supports_masking
        self._sampled: estimators.Weights = {}
        if not self.trainable:
            layer.trainable = False

    def __getattr__(self, name: str) -> Any:
        """Public attributes of the wrapped layer, where the wrapper has none of that name; methods are its own."""
        inherited = getattr(super(), "__getattr__", None)  # Torch keeps the layers inside where only this finds them
        if inherited is not None:
            with contextlib.suppress(AttributeError):
                return inherited(name)
        if not name.startswith("_") and name != "layer" and hasattr(self, "layer"):
            value = getattr(self.layer, name)
            # A layer is also known by its methods (`bdl.protocols`): the one inside is found, and asked, itself.
            if getattr(value, "__self__", None) is not self.layer:
                return value
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def sampled_weights(self) -> estimators.Weights:
        """The weights that have a posterior, by name; empty until the layer is built."""
        return dict(self._sampled)

    @property
    def input_spec(self) -> Any:
        """What the wrapped layer accepts."""
        return self.layer.input_spec

    def build(self, *shapes: Any, **named_shapes: Any) -> None:
        """Builds the wrapped layer, from the shapes that it asks for, and adds the posteriors' variables."""
        if not self.layer.built:
            self.layer.build(*shapes, **named_shapes)
        input_shape = next(iter((*shapes, *named_shapes.values())), None)
        frozen = not self.trainable
        if frozen:  # Keras would add every variable as a frozen one: which of them follow a weight could not be seen
            self.trainable = True
        self.noise_strength = self.add_weight(
            name="noise_strength", shape=(), initializer="ones", trainable=False, dtype="float32", autocast=False
        )
        self._stages = self._linear_stages()
        for index, (name, (prior, posterior)) in enumerate(self._families.items()):
            weight = self._sampled_weight(index, name, prior, posterior, input_shape)
            self._sampled[name] = weight
            self.follow(weight.mean, [*weight.variables.values(), *weight.prior_variables.values()])
        if frozen:
            self.trainable = False
        self._built_with = _Weights(tuple(self.layer.weights))
        self.built = True

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Evaluates the layer, with the arguments of its own call, for one draw of its weights."""
        self._check_weights()
        warn_if_uncounted(self, training)
        noise = Noise(random.draw_key(self.seed_generator), ops.convert_to_tensor(self.noise_strength))
        inputs = next(iter((*args, *kwargs.values())))
        if self._evaluates_stages(inputs, training):
            return self._call_stages(inputs, noise)
        return self._call_whole(noise, *args, **self._with_training(training, kwargs))

    def kl_divergence(self) -> Tensor:
        """Divergence of all weight posteriors from their priors: scalar, total, in nats.

        Point estimates with a prior (`Rank1`'s `kernel_prior`, `TiedMean`'s `mean_prior`) add their penalty. It is a
        function of the variables alone, however often the layer was called.
        """
        if not self.built:
            raise ValueError(
                f"Layer {self.name} has no weights yet: build it, or call it once, before kl_divergence()."
            )
        self._check_weights()
        note_reading(self)
        return sum((weight.kl() for weight in self._sampled.values()), ops.zeros((), dtype="float32"))

    def natural_variables(self) -> list[GaussianVariables]:
        """Means and scales of what has independent Gaussians for its posterior, for natural gradients."""
        parts = [part for weight in self._sampled.values() for part in weight.components()]
        found = [part.posterior.gaussian_variables(part.mean, part.variables) for part in parts]
        return [each for each in found if each is not None]

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None, **kwargs: Any) -> None:
        """Refused: integers have no posterior."""
        raise ValueError(
            f"`layer` must keep real weights while it has a posterior, so {self.name!r} is not quantized to {mode!r}. "
            "Quantize the plain model that bdl.convert.to_deterministic gives."
        )

    def compute_output_shape(self, *shapes: Any, **named_shapes: Any) -> Any:
        """The shape that the wrapped layer computes."""
        return self.layer.compute_output_shape(*shapes, **named_shapes)

    def compute_output_spec(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """The spec that the wrapped layer computes."""
        return self.layer.compute_output_spec(*args, **self._with_training(training, kwargs))

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The mask that the wrapped layer computes."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        families = {
            name: [keras.saving.serialize_keras_object(part) for part in family if part is not None]
            for name, family in self._families.items()
        }
        return {**super().get_config(), "estimator": self.estimator, "weights": families, "seed": self.seed}

    def _check_weights(self) -> None:
        """Refuses a wrapped layer that has replaced its weights, or got more: the posteriors are of the old ones."""
        held, found = self._built_with.variables, self.layer.weights
        if len(held) == len(found) and all(one is other for one, other in zip(held, found, strict=True)):
            return
        new = [weight.path for weight in found if not any(weight is one for one in held)]
        raise ValueError(
            f"`layer` {self.layer.name!r} of {self.name!r} must have the weights that it had when its posterior was "
            f"made, not others ({new or 'some are gone'}). Quantize the plain model that "
            "bdl.convert.to_deterministic gives, or leave this layer out by `filters`; enable LoRA before the "
            "posterior is made."
        )

    def _noise_seed(self) -> int | None:
        """Seed of the noise's generator."""
        return self.seed

    def _with_training(self, training: bool | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments for the wrapped layer: `training` is among them only where it has such an argument."""
        accepts = "training" in inspect.signature(self.layer.call).parameters
        return {**kwargs, "training": training} if accepts and training is not None else kwargs

    def _linear_stages(self) -> list[linear.Stage]:
        draws_factors = [not posterior.samples_weights for _, posterior in self._families.values()]
        self._stage_estimator = "rank1" if any(draws_factors) else self.estimator
        if any(draws_factors) and not all(draws_factors):
            raise ValueError("`posterior`: Rank1 factors and sampled weights cannot be mixed in one layer.")
        # Reparameterization serves every layer; dense ones it trains with mirrored noise. On convolutions, evaluating
        # two halves of a batch costs up to two thirds more.
        whole = self._stage_estimator == "reparameterization" and not linear.is_plain_dense(self.layer)
        if whole:
            return []
        return linear.factor_stages(self.layer) if any(draws_factors) else linear.stages(self.layer)

    def _sampled_weight(
        self, index: int, name: str, prior: Prior, posterior: AnyPosterior, input_shape: Any
    ) -> SampledWeight | FactoredWeight:
        variable = self._find_weight(name)
        owner = _owner(self.layer, variable)
        weight_prior = posterior.kernel_prior if isinstance(posterior, FactorPosterior) else prior
        if variable.regularizer is not None and weight_prior is not None:
            raise ValueError(
                f"`{_regularizer_argument(owner, variable)}` of layer {owner.name} is {variable.regularizer!r}, but "
                f"{name!r} has a prior: the two would count twice. Remove the regularizer, or express it as the prior."
            )
        axes = linear.kernel_input_axes(owner, linear.weight_name(variable), variable.shape)
        prefix = name.replace("/", "_")
        if isinstance(posterior, FactorPosterior):
            variables = posterior.create_factors(self, name, self._factor_shapes(name, input_shape))
            held = {} if weight_prior is None else weight_prior.create(self, prefix, variable)
            return FactoredWeight(variable, posterior, axes, variables, held)
        variables = posterior.create(self, prefix, variable, axes)
        return SampledWeight(variable, posterior, prior, axes, variables, prior.create(self, prefix, variable), index)

    def _factor_shapes(self, name: str, input_shape: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the factors of the layer's inputs and outputs."""
        stage = next((stage for stage in self._stages if stage.weights[0] == name), None)
        if stage is None or len(self._stages) != 1:
            raise ValueError(f"`posterior`: Rank1 factors need a layer with one kernel, not {name!r} of {self.layer}.")
        output_shape = self.layer.compute_output_shape(input_shape)
        return {
            "input": stage.input_factor_shape(input_shape),
            "output": linear.feature_shape(output_shape, stage.output_axes),
        }

    def _find_weight(self, name: str) -> keras.Variable:
        # A frozen layer has no trainable weights, but may be unfrozen later: its posterior exists all the same.
        weights = self.layer.weights
        candidates = [weight for weight in weights if weight.trainable or not _owner(self.layer, weight).trainable]
        found = [weight for weight in candidates if f"/{weight.path}".endswith(f"/{name}")]
        if len(found) != 1:
            known = sorted(weight.path for weight in candidates)
            raise ValueError(
                f"`weights` must name weights of layer {self.layer.name}, each once: {name!r} matches {len(found)}. "
                f"Its trainable weights are {known}; a longer end of the path picks one of several."
            )
        return found[0]

    def _evaluates_stages(self, inputs: Tensor, training: bool | None) -> bool:
        if self._stage_estimator == "rank1":
            return True
        if estimators.draws_whole_functions() or not self._stages:
            return False
        if self._stage_estimator == "local_reparameterization" and not training:
            return linear.is_exact_for_local_reparameterization(self.layer, inputs)
        if self._stage_estimator == "reparameterization" and is_sparse(inputs):
            return False  # mirrored noise needs a batch that can be cut into halves
        return self._stage_estimator == "flipout" or bool(training)

    def _call_stages(self, inputs: Tensor, noise: Noise) -> Tensor:
        means = {linear.weight_name(weight): ops.convert_to_tensor(weight) for weight in self.layer.weights}
        estimate = STAGE_ESTIMATORS[self._stage_estimator]
        outputs = inputs
        for number, stage in enumerate(self._stages):
            outputs = estimate(stage, means, self._sampled, outputs, noise, FIRST_FREE_STREAM + 2 * number)
        activation = getattr(self.layer, "activation", None)
        return outputs if activation is None else activation(outputs)

    def _call_whole(self, noise: Noise, *args: Any, **kwargs: Any) -> Any:
        values = estimators.sample_weights(self._sampled, noise)
        samples = {id(self._sampled[name].mean): value for name, value in values.items()}
        evaluation = call_with_values(self.layer, samples, *args, **kwargs)
        for variable, value in evaluation.state:
            variable.assign(value)
        for loss in evaluation.losses:
            self.add_loss(loss)
        return evaluation.outputs


@contextlib.contextmanager
def mean_weights(model: keras.Layer) -> Iterator[None]:
    """Within this context the noise of a model is off: variational layers use their means, dropout drops nothing.

    It works by a variable of each layer, so compiled functions (`fit`, `predict`, `evaluate`) follow without being
    compiled again. A model saved inside the context is saved with its noise off.

    Args:
        model: A Keras model or layer, built.

    Raises:
        ValueError: if it holds no built layer with noise.

    Example:
    >>> layer = Variational(keras.layers.Dense(3))
    >>> x = np.ones((2, 4), "float32")
    >>> _ = layer(x)
    >>> with mean_weights(layer):
    ...     bool(np.allclose(layer(x), layer.layer(x)))
    True
    """
    noisy = (
        model.drawn_network() if hasattr(model, "drawn_network") else model
    )  # whose noise may be that of the optimizer's posterior
    layers = [layer for layer in flatten_layers(noisy) if layer.built and hasattr(layer, "noise_strength")]
    if not layers:
        raise ValueError(f"`model` has no built layer with noise: {model!r}. Build it, or call it once.")
    before = [ops.convert_to_numpy(ops.convert_to_tensor(layer.noise_strength)) for layer in layers]
    try:
        for layer in layers:
            layer.noise_strength.assign(0.0)
        yield
    finally:
        for layer, strength in zip(layers, before, strict=True):
            layer.noise_strength.assign(strength)


def _owner(layer: keras.Layer, weight: keras.Variable) -> keras.Layer:
    """The layer that made a weight: the innermost of those that hold it."""
    return [inner for inner in flatten_layers(layer) if any(weight is held for held in inner.weights)][-1]


def _regularizer_argument(owner: keras.Layer, weight: keras.Variable) -> str:
    """The argument that gave a weight its regularizer: `kernel_regularizer`, `recurrent_regularizer`, ..."""
    name = linear.weight_name(weight).removesuffix("_kernel")
    if name == "kernel" and isinstance(owner, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        name = "depthwise"
    return f"{name}_regularizer"


def _check_independence(families: Mapping[str, tuple[Prior, AnyPosterior]], estimator: str) -> None:
    """Refuses correlated weights where the estimator draws as if they were independent."""
    for name, (_, posterior) in families.items():
        if not posterior.admits(estimator):
            raise ValueError(
                f"`estimator`={estimator!r} needs weights that are independent of each other, but {name!r} has the "
                f"posterior {posterior!r}. Use estimator='reparameterization' (a `...Reparameterization` layer), or "
                "another posterior, such as 'mean_field' or 'matrix_normal'."
            )


def _families(
    weights: Sequence[str] | Mapping[str, Any], prior: Any, posterior: Any
) -> dict[str, tuple[Prior, AnyPosterior]]:
    """Prior and posterior of each named weight."""
    if isinstance(weights, str) or not weights:
        raise ValueError(f"`weights` must name at least one weight, such as ('kernel',), not {weights!r}.")
    pairs = weights if isinstance(weights, Mapping) else {name: (prior, posterior) for name in weights}
    return {name: (priors.get(pair[0], "prior"), posteriors.get(pair[1], "posterior")) for name, pair in pairs.items()}
