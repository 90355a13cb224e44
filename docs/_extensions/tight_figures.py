"""Figures of the gallery with all that stands around their axes, such as legends below and strips above."""

from typing import Any

from sphinx_gallery.scrapers import matplotlib_scraper


def scrape(*args: Any, **kwargs: Any) -> str:
    """Saves the open figures of an example."""
    return matplotlib_scraper(*args, bbox_inches="tight", **kwargs)
