"""Checks a built site: `python docs/check_site.py site`.

Each link and image inside the site leads to a file, and to an anchor that this file has; each public name of bdl has an
entry in the reference.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.util.inventory import InventoryFile

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
from public_names import pages


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes what an element links to, and its own names."""
        for name, value in attrs:
            if value and name in ("id", "name"):
                self.anchors.add(value)
            elif value and name in ("href", "src") and tag != "base":
                self.links.add(value)


def dead_links(site: Path) -> list[str]:
    """Each link without a target, with its page."""
    paths = [
        path for path in site.rglob("*.html") if "_static" not in path.parts
    ]  # there the theme keeps its templates
    parsed = {path.resolve(): Page(path) for path in paths}
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
    problems = [f"dead link in {link}" for link in dead_links(site)]
    problems += [f"{name} is not in the reference" for name in missing_names(site)]
    print("\n".join(problems) or f"{site}: every link leads somewhere, and every public name is there")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
