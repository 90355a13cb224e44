"""A report is one file: all that it shows stands in it, escaped, and it replaces an older one whole or not at all."""

import base64
import io
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.figure
import matplotlib.image
import pytest

from bdl.report import Figure, Page, Paragraph, Row, Section, Table, render, write_atomically


def figure(width: float = 2.0, height: float = 1.0) -> Figure:
    ax = matplotlib.figure.Figure(figsize=(width, height)).add_subplot()
    ax.plot([0, 1], [0, 1])
    return Figure(ax, "A line & its caption.", 'A "line" from 0 to 1.')


TABLE = Table(("left", "right"), [Row("first", ("1", "2"), "What it means."), Row("second", ("3", "4"))], "In short.")
PAGE = Page(
    "Title <1>", "Summary & more.", [Section("One", [Paragraph("a < b"), TABLE]), Section("Two", [figure()])], "Footer."
)


class Elements(HTMLParser):
    """Collects the start tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())


def test_all_text_is_there_and_escaped() -> None:
    text = Elements(render(PAGE)).text
    expected = ("Title <1>", "Summary & more.", "One", "a < b", "first", "What it means.", "4", "In short.", "Footer.")
    assert set(expected) <= set(text)
    assert "A line & its caption." in text


def test_a_page_refers_to_nothing_outside_itself() -> None:
    html = render(PAGE)
    tags = Elements(html).tags
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    references = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert references
    assert all(value and value.startswith("data:image/png;base64,") for value in references)
    without_images = re.sub(r"data:image/png;base64,[\w+/=]+", "", html)
    assert not re.search(r"https?:|url\(|@import|//", without_images)


def test_a_figure_is_a_sharp_image_of_its_size_with_a_description() -> None:
    (attributes,) = [attributes for tag, attributes in Elements(render(PAGE)).tags if tag == "img"]
    assert attributes["alt"] == 'A "line" from 0 to 1.'
    assert (attributes["width"], attributes["height"]) == ("192", "96")
    source = attributes["src"] or ""
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(source.split(",")[1])))
    assert image.shape[:2] == (192, 384)


def test_the_same_page_renders_to_the_same_bytes() -> None:
    pages = [Page("t", "s", [Section("one", [figure()])]) for _ in range(2)]
    assert render(pages[0]) == render(pages[1])


def test_an_optional_part_that_is_empty_leaves_no_trace() -> None:
    tags = [
        tag for tag, _ in Elements(render(Page("t", "s", [Section("one", [Table(("a",), [Row("b", ("c",))])])]))).tags
    ]
    assert not {"footer", "small", "figcaption"} & set(tags)


def test_a_row_that_does_not_fit_the_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"each of the 2 columns, not 1 in row 'short'"):
        Table(("left", "right"), [Row("short", ("1",))])


def test_axes_without_a_figure_are_refused() -> None:
    lonely = figure()
    lonely.axes.remove()
    with pytest.raises(ValueError, match="`axes` must belong to a figure"):
        render(Page("t", "s", [Section("one", [lonely])]))


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for text in ("old", "new äöü"):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half of it \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    write_atomically(tmp_path / "page.html", "")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_threads_that_write_at_once_do_not_mix_their_files(tmp_path: Path) -> None:
    texts = {tmp_path / f"{number}.json": str(number) * 20_000 for number in range(200)}
    shared = tmp_path / "shared.json"
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write_atomically, texts, texts.values()))
        list(threads.map(write_atomically, [shared] * 100, texts.values()))
    assert all(path.read_text() == text for path, text in texts.items())
    assert shared.read_text() in texts.values()
    assert set(tmp_path.iterdir()) == {*texts, shared}
