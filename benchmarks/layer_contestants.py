"""Who takes part in the layer benchmark, against whom each is measured, and what bdl has promised.

Data only: `layer_workers.py` builds the contestants, `layers.py` runs them. Only the standard library is imported, for
parent and workers may run in different environments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

NUM_EXAMPLES = 60_000  # the KL is divided by the size of MNIST's training set
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
NETWORKS = ("mlp", "conv")

DETERMINISTIC = "deterministic"
ESTIMATORS = ("reparameterization", "local_reparameterization", "flipout", "rank1")

# Without a suffix: as the library compiles by default on a CPU, which on TensorFlow is a graph without XLA.
KERAS_RUNTIMES = ("keras-tensorflow-xla", "keras-tensorflow", "keras-jax", "keras-torch")
TF_KERAS_RUNTIMES = ("tf-keras-xla", "tf-keras")
TORCH_RUNTIMES = ("torch-compile", "torch")
XLA_RUNTIMES = ("keras-tensorflow-xla", "keras-jax", "tf-keras-xla")
PROMISED_RUNTIMES = ("keras-tensorflow-xla", "keras-jax")  # the targets beside the deterministic twin hold for these

RIVAL_RUNTIMES = {
    **{runtime: (runtime,) for runtime in KERAS_RUNTIMES},
    "tf-keras-xla": ("keras-tensorflow-xla",),
    "tf-keras": ("keras-tensorflow",),
    **{runtime: ("keras-tensorflow-xla", "keras-tensorflow") for runtime in TORCH_RUNTIMES},
}
"""On which runtimes bdl meets a peer: on the peer's own if Keras 3 has it, else on its default backend."""

TWIN_TARGETS = {"reparameterization": 2.5, "local_reparameterization": 2.8, "flipout": 3.5, "rank1": 2.0}
"""At most so many times the deterministic twin's step."""
PEER_TARGET = 1.5
"""A peer's step takes at least so many times bdl's for the same estimator ..."""
PEER_TARGET_EXCEPTIONS = {("keras-proba", "local_reparameterization"): 1.1}
"""... but for these, whose local reparameterization leaves little to gain."""


@dataclass(frozen=True)
class Contestant:
    """One way to train the networks: a library's estimator on a runtime.

    Attributes:
        library: Name of the package whose layers are used.
        estimator: One of `ESTIMATORS`, or `DETERMINISTIC`.
        runtime: What executes the step; see the lists above.
        worker: Name of the process it lives in.
        networks: The networks that the library has layers for.
    """

    library: str
    estimator: str
    runtime: str
    worker: str
    networks: tuple[str, ...] = NETWORKS

    @property
    def name(self) -> str:
        """`library/estimator/runtime`."""
        return f"{self.library}/{self.estimator}/{self.runtime}"

    @property
    def is_peer(self) -> bool:
        """Whether it is a rival of bdl, and not bdl or a deterministic twin."""
        return self.estimator != DETERMINISTIC and self.library != "bdl"


@dataclass(frozen=True)
class WorkerSpec:
    """A process that contestants live in.

    Attributes:
        framework: First argument of `layer_workers.py`.
        peers: Whether it runs in the environment of the peers.
    """

    framework: str
    peers: bool


KERAS_FRAMEWORKS = ("keras-tensorflow", "keras-jax", "keras-torch")
WORKERS = {
    **{framework: WorkerSpec(framework, peers=False) for framework in (*KERAS_FRAMEWORKS, "tf-keras")},
    **{f"peers-{framework}": WorkerSpec(framework, peers=True) for framework in (*KERAS_FRAMEWORKS, "torch")},
}


def _all_contestants() -> Iterator[Contestant]:
    without_local_convolution = {"local_reparameterization": ("mlp",)}
    for runtime in KERAS_RUNTIMES:
        framework = runtime.removesuffix("-xla")
        yield Contestant("keras", DETERMINISTIC, runtime, framework)
        for estimator in ESTIMATORS:
            yield Contestant("bdl", estimator, runtime, framework)
        for estimator in ("reparameterization", "local_reparameterization", "flipout"):
            networks = without_local_convolution.get(estimator, NETWORKS)
            yield Contestant("keras-proba", estimator, runtime, f"peers-{framework}", networks)
    for runtime in TF_KERAS_RUNTIMES:
        yield Contestant("tf-keras", DETERMINISTIC, runtime, "tf-keras")
        for estimator in ("reparameterization", "local_reparameterization", "flipout"):
            networks = without_local_convolution.get(estimator, NETWORKS)
            yield Contestant("tfp", estimator, runtime, "tf-keras", networks)
    for runtime in TORCH_RUNTIMES:
        yield Contestant("torch", DETERMINISTIC, runtime, "peers-torch")
        yield Contestant("bayesian-torch", "reparameterization", runtime, "peers-torch")
        yield Contestant("bayesian-torch", "flipout", runtime, "peers-torch")
        yield Contestant("blitz", "reparameterization", runtime, "peers-torch")
        yield Contestant("torch-uncertainty", "reparameterization", runtime, "peers-torch")


CONTESTANTS = tuple(_all_contestants())
"""Ordered so that whoever is compared stands close together in a round."""


def twin_of(contestant: Contestant) -> Contestant:
    """The deterministic network on the same runtime."""
    return next(c for c in CONTESTANTS if c.estimator == DETERMINISTIC and c.runtime == contestant.runtime)


def rivals_of(peer: Contestant) -> list[Contestant]:
    """The bdl layers with the peer's estimator that it is compared with."""
    runtimes = RIVAL_RUNTIMES[peer.runtime]
    return [c for c in CONTESTANTS if c.library == "bdl" and c.estimator == peer.estimator and c.runtime in runtimes]


def peer_target(peer: Contestant) -> float:
    """The least ratio of the peer's step to bdl's that bdl has promised."""
    return PEER_TARGET_EXCEPTIONS.get((peer.library, peer.estimator), PEER_TARGET)


def select(patterns: list[str], network: str) -> list[Contestant]:
    """The contestants whose names match a shell pattern, and all that these are compared with.

    Raises:
        ValueError: if a pattern matches no contestant on any network.
    """
    for pattern in patterns:
        if not any(fnmatchcase(c.name, pattern) for c in CONTESTANTS):
            raise ValueError(f"No contestant matches {pattern!r}; `--list` shows them all.")
    wanted = {c for c in CONTESTANTS if any(fnmatchcase(c.name, pattern) for pattern in patterns)}
    wanted |= {rival for c in wanted if c.is_peer for rival in rivals_of(c)}
    wanted |= {twin_of(c) for c in wanted}
    return [c for c in CONTESTANTS if c in wanted and network in c.networks]
