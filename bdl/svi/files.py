"""What a file of a fitted story holds, and whether it is of the story at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from bdl.serialization import take_format
from bdl.svi.baseline import baselines_of_file, configs_of
from bdl.svi.chains import of_chain
from bdl.svi.guides import Guide
from bdl.svi.guides.selection import requested
from bdl.svi.story import Site

FORMAT_VERSION = 1
"""Version of the configuration that `get_config` writes."""


class Saved:
    """Saving and loading of a model of a story; see `bdl.svi.SVI`."""

    sites: tuple[Site, ...]
    guides: list[Guide]
    described: Any
    seed_generator: keras.random.SeedGenerator

    def check_sites(self, sites: Any) -> None:
        """Compares the sites of a story with those that the model was fitted to.

        Raises:
            ValueError: if they differ in name, kind or shape.
        """
        for site in sites:
            known = next((each for each in self.sites if each.name == site.name), site)
            if known.shape != site.shape:
                raise ValueError(
                    f"Site {site.name!r} must have one shape on all batches, not {known.shape} and then {site.shape}."
                )
        if _told(sites) != _told(self.sites):
            raise ValueError(
                f"`story` must have the sites that this model was fitted to, {_told(self.sites)}, not {_told(sites)}. "
                "Make a new SVI for another story."
            )

    def get_config(self) -> dict[str, Any]:
        """Returns everything that `from_config` needs."""
        model: Any = self
        return {
            "story": keras.saving.serialize_keras_object(model.story),
            "guide": _guide_config(model),
            "networks": {name: keras.saving.serialize_keras_object(layer) for name, layer in model.networks.items()},
            "num_examples": model.num_examples if model.progress.is_size_given else None,
            "start": _start_config(model.start),
            "objective": model.objective,
            "num_samples": model.num_samples,
            "baseline": _baseline_config(model.baseline),
            "num_chains": model.num_chains,
            "averaging": model.averaging,
            "control_variate": model.control_variate,
            "sticking": model.sticking,
            "kl_weight": keras.saving.serialize_keras_object(model.kl_weight),
            "dtype": model.compute_dtype,
            "seed": model.seed,
            "name": model.name,
            "format_version": FORMAT_VERSION,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        """Builds the model again.

        Raises:
            ValueError: if the story is not registered and not given, or a newer version of bdl wrote the file.
        """
        config = dict(config)
        take_format(config, FORMAT_VERSION)
        config["story"] = _story(config["story"], custom_objects)
        if isinstance(config["guide"], list):
            config["guide"] = {
                tuple(names): keras.saving.deserialize_keras_object(guide, custom_objects=custom_objects)
                for names, guide in config["guide"]
            }
        else:
            config["guide"] = keras.saving.deserialize_keras_object(config["guide"], custom_objects=custom_objects)
        config["networks"] = {
            name: keras.saving.deserialize_keras_object(layer, custom_objects=custom_objects)
            for name, layer in config["networks"].items()
        }
        if isinstance(config.get("baseline"), dict):
            config["baseline"] = keras.saving.deserialize_keras_object(
                config["baseline"], custom_objects=custom_objects
            )
        config["kl_weight"] = keras.saving.deserialize_keras_object(config["kl_weight"])
        return cls(**config)

    def get_build_config(self) -> dict[str, Any]:
        """The sites, what the data looked like on which they were traced, guides of further chains, and baselines."""
        if not self.sites:
            return {}
        sites = [
            [site.name, site.kind, list(site.shape), site.size, site.num_values, site.is_discrete]
            for site in self.sites
        ]
        model: Any = self
        others = self.guides[len(model.guides_of(0)) :]
        return {
            "sites": sites,
            "data": self.described,
            "others": [keras.saving.serialize_keras_object(guide) for guide in others],
            "baselines": configs_of(model.baselines),
            "host_calls": list(model.host_calls),
        }

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Gives a loaded model its variables."""
        if not config:
            return
        model: Any = self
        others = []
        configs = config.get("others", [])
        for place, guide in enumerate(configs):
            with of_chain(1 + place * (model.num_chains - 1) // len(configs)):
                others.append(keras.saving.deserialize_keras_object(guide))
        model.bind_guides(
            tuple(Site(name, kind, tuple(shape), *numbers) for name, kind, shape, *numbers in config["sites"]),
            others=others,
            baselines=baselines_of_file(model.baseline, config.get("baselines", []), model.dtype_policy),
        )
        model.described = config["data"]
        model.take_host_calls(config.get("host_calls", []))
        model.is_started = True

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles again after loading."""
        model: Any = self
        model.compile(**keras.saving.deserialize_keras_object(config))
        if model.built:
            model.check_trained()
            model.optimizer.build(model.trainable_variables)

    def save_own_variables(self, store: Any) -> None:
        """Keeps with the weights the story's fingerprint, N, and where the noise is, which Keras does not save."""
        model: Any = self
        super().save_own_variables(store)  # type: ignore[misc]
        store["story"] = _fingerprint(self.sites)
        store["rows"] = np.asarray(model.num_examples or 0)
        store["chains"] = np.asarray(model.num_chains)
        store["noise"] = keras.ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Refuses weights of another story or number of chains, and a checkpoint of a fit to another number of rows.

        Weights that are loaded before a fit may be of other rows, for `fit` counts its own. Where N was given, or
        within a fit, it is settled, and T would be wrong.

        Raises:
            ValueError: if names, kinds or shapes of its sites differ from this one's, or the number of chains, or N
                does and is settled.
        """
        model: Any = self
        names = list(store.keys())  # of a file's group, which has no iterator of its own
        kept = bytes(np.asarray(store["story"], dtype="uint8")).decode() if "story" in names else "none"
        own = bytes(_fingerprint(self.sites)).decode()
        if kept != own:
            raise ValueError(f"The weights must be of a story with the sites {own}, not {kept}.")
        chains = int(np.asarray(store["chains"])) if "chains" in names else 1
        if chains != model.num_chains:
            raise ValueError(f"The weights must be of a model with num_chains={model.num_chains}, not {chains}.")
        rows = int(np.asarray(store["rows"])) if "rows" in names else 0
        is_settled = model.progress.is_size_given or model.is_fitting
        if rows and is_settled and rows != model.num_examples:
            raise ValueError(
                f"The weights must be of a fit to N = {model.num_examples} rows, not {rows}. Take a checkpoint of the "
                "same data, or load the weights before fit into a model without num_examples."
            )
        self.seed_generator.state.assign(np.asarray(store["noise"]))
        rest = {name: store[name] for name in names if name not in ("story", "rows", "chains", "noise")}
        super().load_own_variables(rest)  # type: ignore[misc]
        model.is_started = True


def _told(sites: Any) -> str:
    def values(site: Site) -> str:
        number = f", {site.num_values} values" if site.num_values else ""
        return f"{number}, discrete" if site.is_discrete else number

    return ", ".join(f"{site.name} ({site.kind}, {site.shape}{values(site)})" for site in sites)


def _fingerprint(sites: Any) -> np.ndarray:
    return np.frombuffer(_told(sites).encode(), dtype="uint8")


def _guide_config(model: Any) -> Any:
    """The guides as they are bound; before that, as they were given."""
    if model.guides:
        return [[list(guide.sizes), keras.saving.serialize_keras_object(guide)] for guide in model.guides_of(0)]
    if not isinstance(model.requested_guide, Mapping):
        return keras.saving.serialize_keras_object(model.requested_guide)
    return [
        [list(names), keras.saving.serialize_keras_object(guide)] for names, guide in requested(model.requested_guide)
    ]


def _baseline_config(baseline: Any) -> Any:
    return baseline if isinstance(baseline, str) else keras.saving.serialize_keras_object(baseline)


def _start_config(start: Any) -> Any:
    if isinstance(start, tuple):
        return [start[0], _start_config(start[1])]
    return {name: np.asarray(value).tolist() for name, value in start.items()} if isinstance(start, Mapping) else start


def _story(config: Any, custom_objects: dict[str, Any] | None) -> Any:
    try:
        return keras.saving.deserialize_keras_object(config, custom_objects=custom_objects)
    except (TypeError, ValueError) as error:
        name = config.get("config") if isinstance(config, dict) else config
        raise ValueError(
            f"`story` {name!r} must be a registered function, or be given when the file is loaded. Decorate it with "
            "@keras.saving.register_keras_serializable(), or call load_model(path, custom_objects="
            f"{{{name!r}: story}})."
        ) from error


def described(data: Any) -> Any:
    """Shapes and dtypes of the arrays of a batch, in the structure of the batch.

    Example:
    >>> described({"x": np.zeros((2, 3))})
    {'keys': {'x': {'shape': [2, 3], 'dtype': 'float64'}}}
    """
    if isinstance(data, Mapping):
        return {"keys": {name: described(value) for name, value in data.items()}}
    if isinstance(data, (list, tuple)):
        return {"items": [described(value) for value in data]}
    return {"shape": list(data.shape), "dtype": keras.backend.standardize_dtype(data.dtype)}


def invented(description: Any) -> Any:
    """A batch as described: numbers from 1/4 to 3/4, which may be scales or probabilities, and zeros for whole numbers.

    Example:
    >>> np.asarray(invented(described(np.ones(2, "int32")))).tolist()
    [0, 0]
    """
    if "keys" in description:
        return {name: invented(value) for name, value in description["keys"].items()}
    if "items" in description:
        return [invented(value) for value in description["items"]]
    shape, dtype = description["shape"], description["dtype"]
    if "float" not in dtype:
        return keras.ops.zeros(shape, dtype=dtype)
    return keras.ops.convert_to_tensor(np.random.default_rng(0).uniform(0.25, 0.75, shape), dtype=dtype)
