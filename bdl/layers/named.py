"""How the named drop-in layers (`DenseFlipout`, `Conv2DRank1`, ...) are made from the mechanism."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import keras

from bdl import posteriors, priors
from bdl.keras_internals import set_signature
from bdl.layers.documentation import complete_docstring
from bdl.layers.variational import DEFAULT_POSTERIOR, DEFAULT_PRIOR, Variational
from bdl.posteriors import AnyPosterior, Rank1
from bdl.priors import Normal, Prior
from bdl.serialization import serialize

_LAYER_ARGUMENTS = ("name", "dtype", "trainable")
_SEPARABLE_KERNELS = ("depthwise_kernel", "pointwise_kernel")
DEFAULT_FACTOR_PRIOR = Normal(1.0, 1.0)

Families = dict[str, tuple[Prior, AnyPosterior]]
"""Prior and posterior of each sampled weight, by its name."""


class NamedVariational(Variational):
    """A Keras layer and an estimator under one name: the arguments of the Keras layer, then those of the posterior.

    The Keras layer's attributes can be read from it: `layer.units`, `layer.activation`, and `layer.kernel`, which is
    the posterior mean.

    Args:
        *args: Positional arguments of the Keras layer.
        kernel_prior: `bdl.priors.Prior` of the kernel, or its name. Default: a Gaussian around fitted means,
            `TiedMean(WidthNormal(), mean_prior=Normal(0, 3))`.
        kernel_posterior: `bdl.posteriors.Posterior` of the kernel, or its name. Default: `MeanFieldNormal()`.
            The correlated weights of `LowRankNormal()` need a `...Reparameterization` layer.
        bias_prior: Prior of the bias. None, with `bias_posterior` None, leaves the bias a point estimate.
        bias_posterior: Posterior of the bias. None with a `bias_prior` means `MeanFieldNormal()`.
        seed: Integer seed of the layer's noise, and of its dropout if it has one, or None for a random one.
        **kwargs: Keyword arguments of the Keras layer.

    Raises:
        ValueError: if an argument is out of range, or `bias_posterior` comes without `bias_prior`.
    """

    kernel_prior: Prior | None
    keras_layer: ClassVar[type[keras.Layer]]
    estimator_name: ClassVar[str]

    def __init_subclass__(cls, wraps: type[keras.Layer] | None = None, estimator: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if wraps is None:
            return
        cls.keras_layer = wraps
        cls.estimator_name = estimator
        set_signature(cls, _joint_signature(wraps, cls.__init__))
        family = [base for base in cls.__mro__[1:] if issubclass(base, NamedVariational)]
        complete_docstring(cls, [*family, *wraps.__mro__[:-1]], otherwise=f"As in `keras.layers.{wraps.__name__}`.")
        keras.saving.register_keras_serializable(package="bdl")(cls)

    def __init__(
        self,
        *args: Any,
        kernel_prior: Prior | str | dict[str, Any] = DEFAULT_PRIOR,
        kernel_posterior: AnyPosterior | str | dict[str, Any] = DEFAULT_POSTERIOR,
        bias_prior: Prior | str | dict[str, Any] | None = None,
        bias_posterior: AnyPosterior | str | dict[str, Any] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.kernel_prior = priors.get(kernel_prior, "kernel_prior")
        self.kernel_posterior = posteriors.get(kernel_posterior, "kernel_posterior")
        if bias_posterior is not None and bias_prior is None:
            raise ValueError(
                "`bias_posterior` was given without `bias_prior`. Give a prior, such as bias_prior='normal', "
                "or neither to keep the bias a point estimate."
            )
        self.bias_prior = None if bias_prior is None else priors.get(bias_prior, "bias_prior")
        bias_posterior = bias_posterior or (None if bias_prior is None else DEFAULT_POSTERIOR)
        self.bias_posterior = None if bias_posterior is None else posteriors.get(bias_posterior, "bias_posterior")
        self._wrap(args, kwargs, self.estimator_name, seed)

    def families(self, layer: keras.Layer) -> Families:
        """Prior and posterior of each weight of the Keras layer that is sampled."""
        kernels, biases = self.weight_names(layer)
        assert self.kernel_prior is not None
        found: Families = {name: (self.kernel_prior, self.kernel_posterior) for name in kernels}
        if self.bias_prior is not None and self.bias_posterior is not None:
            found |= {name: (self.bias_prior, self.bias_posterior) for name in biases}
        return found

    def weight_names(self, layer: keras.Layer) -> tuple[Sequence[str], Sequence[str]]:
        """Names of the Keras layer's kernels and of its biases."""
        if isinstance(layer, keras.layers.Embedding):
            return ("embeddings",), ()
        is_separable = isinstance(layer, (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D))
        return _SEPARABLE_KERNELS if is_separable else ("kernel",), ("bias",)

    def _wrap(self, args: tuple[Any, ...], kwargs: dict[str, Any], estimator: str, seed: int | None) -> None:
        own = {name: kwargs.pop(name) for name in _LAYER_ARGUMENTS if name in kwargs}
        inner: dict[str, Any] = {name: own[name] for name in ("dtype", "trainable") if name in own}
        if "seed" in inspect.signature(self.keras_layer.__init__).parameters:
            inner["seed"] = seed  # of its dropout
        layer = self.keras_layer(*args, **kwargs, **inner, name="mean")
        own.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, estimator=estimator, weights=self.families(layer), seed=seed, **own)

    def get_config(self) -> dict[str, Any]:
        """Returns the Keras layer's arguments and the posterior's."""
        config = self.layer.get_config()
        own = {"name": self.name, "trainable": self.trainable and self.layer.trainable, "seed": self.seed}
        return {**config, **own, **self._posterior_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Self:
        """Builds the layer again from `get_config()`."""
        # The Keras layer turns its own arguments (initializers, ...) back; a class's from_config may do more.
        ours = {
            name: config[name] for name in (*_posterior_arguments(cls), "name", "trainable", "seed") if name in config
        }
        theirs = {name: value for name, value in config.items() if name not in ours}
        arguments = cls.keras_layer.from_config({**theirs, "name": "mean"}).get_config()
        return cls(**{**arguments, **ours})

    def _posterior_config(self) -> dict[str, Any]:
        return {name: serialize(getattr(self, name)) for name in _posterior_arguments(type(self))}


class NamedRank1(NamedVariational):
    """A Keras layer with a rank-1 posterior: the arguments of the Keras layer, then the priors of the factors.

    Every example has random factors of its own on the layer's inputs and outputs. The weights are point estimates:
    variational EM, not full Bayes. They maximise the likelihood, or with `kernel_prior` the posterior density (MAP);
    `kl_divergence()` then holds the prior's penalty as well. A first layer with
    `input_factor_prior=bdl.priors.Normal(1.0, 3.0)` leaves the factors of features that are empty in training broad,
    and so knows inputs that it has never seen. Where all features are in use, as in photographs and standardised
    tables, that costs accuracy: `bdl.layers.InputFactors`, in front of the network, is broad for empty features only.

    Args:
        *args: Positional arguments of the Keras layer.
        input_factor_prior: `bdl.priors.Prior` of the input features' factors, around 1. Default: `Normal(1, 1)`.
        output_factor_prior: Prior of the output features' factors, around 1. Default: `Normal(1, 1)`.
        initial_scale: Positive standard deviation of every factor at the start.
        kernel_prior: Prior of the kernel, or its name. `"normal"`, `Normal(0, 1)`, is weight decay of `1 / N` for `N`
            examples. None, the default, is maximum likelihood.
        seed: Integer seed of the layer's noise, and of its dropout if it has one, or None for a random one.
        **kwargs: Keyword arguments of the Keras layer.

    Raises:
        ValueError: if an argument is out of range, a prior is no prior, or `kernel_prior` is not one of point
            estimates.
    """

    def __init__(
        self,
        *args: Any,
        input_factor_prior: Prior | str | dict[str, Any] = DEFAULT_FACTOR_PRIOR,
        output_factor_prior: Prior | str | dict[str, Any] = DEFAULT_FACTOR_PRIOR,
        initial_scale: float = Rank1.initial_scale,
        kernel_prior: Prior | str | dict[str, Any] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.input_factor_prior = priors.get(input_factor_prior, "input_factor_prior")
        self.output_factor_prior = priors.get(output_factor_prior, "output_factor_prior")
        self.initial_scale = initial_scale
        self.kernel_prior = None if kernel_prior is None else priors.get(kernel_prior, "kernel_prior")
        self._wrap(args, kwargs, "reparameterization", seed)

    def families(self, layer: keras.Layer) -> Families:
        """The kernel's factors, whose posterior holds all priors; Variational's default one is not used by factors."""
        posterior = Rank1(
            self.input_factor_prior, self.output_factor_prior, self.initial_scale, kernel_prior=self.kernel_prior
        )
        kernels, _ = self.weight_names(layer)
        return {name: (DEFAULT_PRIOR, posterior) for name in kernels}


def _posterior_arguments(cls: type) -> list[str]:
    """Names of our own arguments, without the seed."""
    return [parameter.name for parameter in _own_parameters(cls.__init__) if parameter.name != "seed"]  # type: ignore[misc]


def _own_parameters(init: Any) -> list[inspect.Parameter]:
    parameters = inspect.signature(init).parameters.values()
    return [parameter for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


def _joint_signature(wraps: type, init: Any) -> inspect.Signature:
    """The Keras layer's arguments, then our keyword arguments, then `**kwargs`; a seed is both's."""
    ours = _own_parameters(init)
    taken = {parameter.name for parameter in ours}
    theirs = [
        parameter
        for parameter in list(inspect.signature(wraps.__init__).parameters.values())[1:]  # type: ignore[misc]
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and parameter.name not in taken
    ]
    rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature([*theirs, *ours, rest])
