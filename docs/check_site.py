"""Checks a built site: `python docs/check_site.py site`.

Each link and image inside the site leads to a file, and to an anchor that this file has; each public name of bdl has an
entry in the reference; and formulas and commands of docstrings keep their lines.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.util.inventory import InventoryFile

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
from public_names import pages


class Page(HTMLParser):
    """The links, anchors and kinds of elements of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element, what it links to, and its own names."""
        self.tags.add(tag)
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.anchors.add(value)
            elif value and name in ("href", "src") and tag != "base":
                self.links.add(value)


def parsed_pages(site: Path) -> dict[Path, Page]:
    """The pages by their places; the theme keeps its templates in `_static`."""
    return {path.resolve(): Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def dead_links(site: Path, parsed: dict[Path, Page]) -> list[str]:
    """Each link without a target, with its page."""
    found = []
    for path, page in parsed.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in parsed and anchor not in parsed[target].anchors):
                found.append(f"{path.relative_to(site.resolve())}: {link}")
    return found


def quotes(site: Path, parsed: dict[Path, Page]) -> list[str]:
    """Pages made of docstrings with a quotation: an indented block, whose lines are joined, without `::` before it."""
    places = [path.relative_to(site.resolve()) for path, page in parsed.items() if "blockquote" in page.tags]
    return [str(place) for place in sorted(places) if place.parts[0] in ("gallery", "reference")]


def missing_names(site: Path) -> list[str]:
    """Public names that have no entry in the reference."""
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    known = {name for kind in inventory.data.values() for name in kind}
    contents, elsewhere = pages()
    listed = {name for names in elsewhere.values() for name in names}
    for room, kinds in contents.items():
        listed |= {f"{room}.{name}" for names in kinds.values() for name in names}
    return sorted(listed - known)


def main(site: Path) -> None:
    """Prints what is wrong, and ends with an error if anything is."""
    parsed = parsed_pages(site)
    problems = [f"dead link in {link}" for link in dead_links(site, parsed)]
    problems += [f"{page} has an indented block without `::` before it" for page in quotes(site, parsed)]
    problems += [f"{name} is not in the reference" for name in missing_names(site)]
    print("\n".join(problems) or f"{site}: every link leads somewhere, and every public name is there")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
