"""What a diagnosis reads of a model of a story (`bdl.svi`), beside what it reads of every training."""

from __future__ import annotations

from dataclasses import dataclass

from bdl.diagnostics.thresholds import THRESHOLDS as LIMIT


@dataclass(frozen=True)
class SiteHealth:
    """A latent site of a story (`bdl.svi`).

    Args:
        name: Of the site.
        kind: `"global"` or `"local"`.
        guide: Class of its guide.
        kl: Divergence of the guide from the prior, in nats: in total of a global site, per row of a local one.
    """

    name: str
    kind: str
    guide: str = ""
    kl: float | None = None


@dataclass(frozen=True)
class StoryHealth:
    """Measurements of a model of a story (Q22).

    Args:
        sites: Each latent site.
        start: Where the fit began: `"prior"`, `"map"`, `"laplace"` or `"values"`.
        is_point: Whether every guide is a point.
        num_iterates: Epochs at whose end the guides of global sites were read.
        r_hat: Largest of the means and log scales of these guides, of the second half of the iterates, cut in two.
        moved: Largest change between those two windows: of a mean, in the guide's standard deviations, or a log scale.
        moved_site: Site that moved so much.
        k_hat: Shape of the tail of the importance weights of draws from all guides.
        k_hat_threshold: Largest one at which weighting the draws corrects what the guide misses.
        effective_share: Effective sample size of the weighted draws, as a part of them.
        k_hat_unknown: Why there is none.
        chains: Whether the chains agree, in words; None of a single one.
        chains_agree: Whether they do.
    """

    sites: tuple[SiteHealth, ...] = ()
    start: str | None = None
    is_point: bool | None = None
    num_iterates: int | None = None
    r_hat: float | None = None
    moved: float | None = None
    moved_site: str | None = None
    k_hat: float | None = None
    k_hat_threshold: float | None = None
    effective_share: float | None = None
    k_hat_unknown: str | None = None
    chains: str | None = None
    chains_agree: bool | None = None

    @property
    def silent(self) -> tuple[SiteHealth, ...]:
        """Local sites whose guide is their prior, row by row: they carry nothing about their rows."""
        local = [site for site in self.sites if site.kind == "local" and site.kl is not None]
        return tuple(site for site in local if (site.kl or 0.0) < LIMIT.local_rate)
