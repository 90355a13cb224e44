"""Draws of all latent sites on the real line, and their log densities under the guides."""

from __future__ import annotations

from dataclasses import dataclass, field

from keras import ops

from bdl.random import Tensor
from bdl.svi.guides.gaussian import RealLine, stuck


@dataclass(frozen=True, eq=False)
class Draw:
    """One draw of all latent sites, on the real line.

    Args:
        real: By site, `(numbers,)` or `(rows, numbers)`.
        draws: What it is one of.
        number: Which one.
    """

    real: dict[str, Tensor]
    draws: Draws
    number: int

    def family(self, place: int) -> tuple[RealLine, Tensor]:
        """The distribution of a guide, and its noise."""
        return self.draws.families[place][self.number], self.draws.noise[place][self.number]

    def log_density(self, place: int) -> Tensor:
        """Log density by coordinate, under a guide."""
        density = self.draws.log_density_of(place)[self.number]
        if place not in self.draws.sticky:
            return density
        family, noise = self.family(place)
        return stuck(density, family.score(noise), self.draws.sticky[place][self.number])


@dataclass(frozen=True, eq=False)
class Draws:
    """Several draws of all latent sites, on the real line.

    Args:
        real: By site, `(draws, numbers)` or `(draws, rows, numbers)`.
        families: Of each guide: its distribution for each draw, all one where it does not depend on others' draws.
        noise: Of each guide: `(draws, noise_size)` or `(draws, rows, noise_size)`.
        sticky: Of guides whose density has its gradient through the draw alone: the draws, `(draws, rows, size)`.
        densities: Of each guide, once they were asked for.
    """

    real: dict[str, Tensor]
    families: dict[int, list[RealLine]]
    noise: dict[int, Tensor]
    sticky: dict[int, Tensor] = field(default_factory=dict)
    densities: dict[int, Tensor] = field(default_factory=dict)

    def log_density(self) -> Tensor:
        """Log densities on the real line, of all sites and rows together: `(draws,)`."""
        total: Tensor = 0.0
        for place in self.families:
            density = self.log_density_of(place)
            total = total + ops.sum(density, axis=tuple(range(1, len(density.shape))))
        return total

    def log_density_of(self, place: int) -> Tensor:
        """Log densities by coordinate under a guide, `(draws, size)` or `(draws, rows, size)`, computed once."""
        if place not in self.densities:
            families, noise = self.families[place], self.noise[place]
            if all(family is families[0] for family in families):
                self.densities[place] = families[0].log_density(noise)
            else:
                each = [family.log_density(noise[number]) for number, family in enumerate(families)]
                self.densities[place] = ops.stack(each)
        return self.densities[place]

    def one(self, number: int) -> Draw:
        """One of them."""
        return Draw({name: each[number] for name, each in self.real.items()}, self, number)
