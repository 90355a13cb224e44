"""What families of discrete values have in common: they have no pathwise gradient."""

from __future__ import annotations

from bdl.svi.guides.base import Guide


class DiscreteFamily(Guide):
    """Base of families of discrete local sites, for `Amortized(family=...)`; see `bdl.svi.score` for their gradients.

    Their numbers are whole: the place of a value among all values of an entry, or a count.
    """

    is_discrete = True

    def misfit(self, num_values: int) -> str | None:
        """Why it is not for a site whose entries have so many values, 0 where they are counts; None if it is."""
        raise NotImplementedError

    def num_noise(self, size: int) -> int:
        """Standard normal numbers that make a draw of `size` numbers."""
        return size
