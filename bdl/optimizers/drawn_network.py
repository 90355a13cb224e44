"""A network whose weights are drawn from the posterior that its optimizer holds."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from bdl import random
from bdl.estimators.stateless import evaluated_at
from bdl.layers.noise_layers import HasNoise
from bdl.optimizers.ivon import IVON
from bdl.random import Tensor


class DrawnNetwork(HasNoise, keras.Model):
    """A plain network that draws its weights anew at each call; it is called like the network, and returns the same.

    It shares all variables with the network and the optimizer, and adds a seed and a `noise_strength`, so that it is
    sampled, exported and diagnosed as a network of variational layers is.

    Args:
        network: A built network.
        optimizer: The optimizer with its posterior.
    """

    is_called_like_network = True

    def __init__(self, network: keras.Model, optimizer: IVON) -> None:
        super().__init__(name=network.name)
        self.network = network
        self.posterior_optimizer = optimizer
        # Tracked, so that compiled functions take them as values.
        self.posterior_state = [optimizer.sample_size, *optimizer.hessians]
        self.create_noise(optimizer.seed)
        self.add_noise_strength()
        self.built = True

    def noise(self) -> list[Tensor]:
        """What the next draw of the weights adds to each mean of the optimizer."""
        key, strength = self.draw()
        # Another stream than that of the training steps, which have the same seed.
        return [strength * each for each in self.posterior_optimizer.noise(random.fold_in(key, 1))]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Outputs for one draw of the weights."""
        with evaluated_at(self.network, self.posterior_optimizer.drawn(self.noise())):
            return self.network(inputs, training=training)

    def drawn_network(self) -> DrawnNetwork:
        """Itself, as `VariationalModel.drawn_network` gives it."""
        return self

    @property
    def output_shape(self) -> Any:
        """That of the network."""
        return self.network.output_shape

    @property
    def own_state(self) -> list[keras.Variable]:
        """What a draw needs besides the network's variables: the optimizer's, the noise strength and the seed."""
        return [*self.posterior_state, self.noise_strength, self.seed_generator.state]


def next_seed(state: Tensor) -> Tensor:
    """The state of a seed generator after a draw, as Keras moves it on."""
    return state + ops.convert_to_tensor([0, 1], dtype=state.dtype)
