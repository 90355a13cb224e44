"""Contestants in plain PyTorch: a deterministic network, bayesian-torch, blitz and torch-uncertainty.

Each minimises mean cross-entropy + KL / N by the recipe of its library, with the KL's scale mended where the recipe
is not an ELBO; the mended one costs the same.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

import numpy as np
import torch
from layer_contestants import BATCH_SIZE, LEARNING_RATE, NUM_EXAMPLES
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]
"""The objective as a function of inputs and labels."""

# Between an image of 28 x 28 and the dense layers: (28 - 2) / 2 = 13, (13 - 2) / 2 = 5 (rounded down), 64 channels.
FLAT_FEATURES = 5 * 5 * 64


class LoopTrainer:
    """Times the usual training loop on tensors in memory."""

    def __init__(self, network: nn.Module, loss: Loss, images: Tensor, labels: Tensor):
        self._optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
        self._loss, self._images, self._labels = loss, images, labels

    def burst(self, steps: int) -> float:
        """Seconds per step of `steps` training steps."""
        start = time.perf_counter()
        for step in range(steps):
            rows = slice(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
            self._optimizer.zero_grad()
            self._loss(self._images[rows], self._labels[rows]).backward()
            self._optimizer.step()
        return (time.perf_counter() - start) / steps


def layers(network: str, dense: Callable[..., nn.Module], conv: Callable[..., nn.Module]) -> list[nn.Module]:
    """The network of the benchmark from the given layers."""
    if network == "mlp":
        return [dense(784, 512), nn.ReLU(), dense(512, 512), nn.ReLU(), dense(512, 10)]
    return [
        *(conv(1, 32, (3, 3)), nn.ReLU(), nn.MaxPool2d(2)),
        *(conv(32, 64, (3, 3)), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), dense(FLAT_FEATURES, 128), nn.ReLU(), dense(128, 10)),
    ]


def deterministic(estimator: str, network: str) -> tuple[nn.Module, Loss]:
    """PyTorch's own layers."""
    model = nn.Sequential(*layers(network, nn.Linear, nn.Conv2d))
    return model, lambda images, labels: cross_entropy(model(images), labels)


def summed_normal_kl(mean: Tensor, scale: Tensor, prior_mean: Tensor, prior_scale: Tensor) -> Tensor:
    """bayesian-torch's KL with a sum where it has a mean: the sum over the weights belongs in the ELBO."""
    kl = torch.log(prior_scale) - torch.log(scale) + (scale**2 + (mean - prior_mean) ** 2) / (2 * prior_scale**2) - 0.5
    return kl.sum()


def bayesian_torch(estimator: str, network: str) -> tuple[nn.Module, Loss]:
    """bayesian-torch: each layer returns its output and its KL."""
    package = importlib.import_module("bayesian_torch.layers")
    suffix = {"reparameterization": "Reparameterization", "flipout": "Flipout"}[estimator]
    model = nn.ModuleList(layers(network, getattr(package, f"Linear{suffix}"), getattr(package, f"Conv2d{suffix}")))
    for layer in model:
        if isinstance(layer, package.BaseVariationalLayer_):
            layer.kl_div = summed_normal_kl

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        outputs, total_kl = images, 0.0
        for layer in model:
            if isinstance(layer, package.BaseVariationalLayer_):
                outputs, kl = layer(outputs)
                total_kl = total_kl + kl
            else:
                outputs = layer(outputs)
        return cross_entropy(outputs, labels) + total_kl / NUM_EXAMPLES

    return model, loss


def blitz(estimator: str, network: str) -> tuple[nn.Module, Loss]:
    """blitz: `sample_elbo` with the KL's weight that its default forgets."""
    modules = importlib.import_module("blitz.modules")
    utils = importlib.import_module("blitz.utils")

    @utils.variational_estimator
    class Network(nn.Sequential):
        pass

    model = Network(*layers(network, modules.BayesianLinear, modules.BayesianConv2d))

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return model.sample_elbo(
            images, labels, criterion=cross_entropy, sample_nbr=1, complexity_cost_weight=1 / NUM_EXAMPLES
        )

    return model, loss


def torch_uncertainty(estimator: str, network: str) -> tuple[nn.Module, Loss]:
    """torch-uncertainty: its `ELBOLoss`, whose KL is a mean over the layers, so that its weight is their number / N."""
    declare_operators_of_torchvision()
    package = importlib.import_module("torch_uncertainty.layers")
    losses = importlib.import_module("torch_uncertainty.losses")
    model = nn.Sequential(*layers(network, package.BayesLinear, package.BayesConv2d))
    num_layers = sum(isinstance(layer, package.BayesLinear | package.BayesConv2d) for layer in model)
    return model, losses.ELBOLoss(model, nn.CrossEntropyLoss(), num_layers / NUM_EXAMPLES, num_samples=1)


def declare_operators_of_torchvision() -> None:
    """Let torchvision be imported beside a PyTorch that its compiled part was not built for.

    torch-uncertainty imports torchvision, though not for the layers measured here. Where torchvision's compiled part
    cannot be loaded (a CUDA build beside a CPU build of PyTorch), its import fails for want of these two declarations.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        KEPT_ALIVE.append(library)


KEPT_ALIVE: list[torch.library.Library] = []  # a library's declarations end with it

BUILDERS = {
    "torch": deterministic,
    "bayesian-torch": bayesian_torch,
    "blitz": blitz,
    "torch-uncertainty": torch_uncertainty,
}


def build(
    library: str, estimator: str, runtime: str, network: str, images: np.ndarray, labels: np.ndarray
) -> LoopTrainer:
    """A network with its loss on its data, compiled by `torch.compile` if the runtime says so."""
    torch.manual_seed(0)
    model, loss = BUILDERS[library](estimator, network)
    if network == "conv":
        images = images.reshape(-1, 1, 28, 28)
    if runtime == "torch-compile":
        loss = torch.compile(loss)
    return LoopTrainer(model, loss, torch.from_numpy(images), torch.from_numpy(labels))
