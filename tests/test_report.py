"""A report is one file: all that it shows stands in it, escaped, and it replaces an older one whole or not at all."""

import base64
import io
import json
import re
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import matplotlib.axes
import matplotlib.colors
import matplotlib.figure
import matplotlib.image
import matplotlib.style
import numpy as np
import pytest
from contrast import contrast

import bdl
from bdl.diagnostics import HealthReport, comparison
from bdl.diagnostics.quantities import Quantities
from bdl.diagnostics.verdict import Finding
from bdl.evaluation import Evaluation
from bdl.report import Figure, Page, Paragraph, Report, Row, Section, Table, fragment, render, write_atomically


def line() -> matplotlib.axes.Axes:
    ax = matplotlib.figure.Figure(figsize=(2.0, 1.0)).add_subplot()
    ax.plot([0, 1], [0, 1])
    return ax


def figure() -> Figure:
    return Figure(line, "A line & its caption.", 'A "line" from 0 to 1.')


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
    names = ("src", "srcset", "href")
    references = [value for _, attributes in tags for name, value in attributes.items() if name in names]
    assert references
    assert all(value and value.startswith("data:image/png;base64,") for value in references)
    without_images = re.sub(r"data:image/png;base64,[\w+/=]+", "", html)
    assert not re.search(r"https?:|url\(|@import|//", without_images)


def test_a_figure_is_a_sharp_image_of_its_size_with_a_description() -> None:
    (attributes,) = [attributes for tag, attributes in Elements(render(PAGE)).tags if tag == "img"]
    assert attributes["alt"] == 'A "line" from 0 to 1.'
    assert (attributes["width"], attributes["height"]) == ("192", "96")
    assert image_of(attributes["src"]).shape[:2] == (192, 384)


def image_of(source: str | None) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(base64.b64decode((source or "").split(",")[1])))


# Light and dark


def themes(html: str) -> dict[str, dict[str, str]]:
    """The colours of the page by the reader's choice, as its style has them."""
    dark = html.index("@media (prefers-color-scheme: dark)")
    light, dark = html[:dark], html[dark : html.index("}", html.index("}", dark) + 1)]
    return {name: dict(re.findall(r"--(\w+): (#\w+);", part)) for name, part in (("light", light), ("dark", dark))}


def test_text_can_be_read_in_light_and_dark() -> None:
    assert "color-scheme: light dark" in render(PAGE)
    for colors in themes(render(PAGE)).values():
        assert contrast(colors["ink"], colors["ground"]) > 7  # WCAG 2.2, level AAA
        assert contrast(colors["muted"], colors["ground"]) > 4.5  # level AA


def test_figures_follow_the_reader_too() -> None:
    html = render(PAGE)
    tags = Elements(html).tags
    (source,) = [attributes for tag, attributes in tags if tag == "source"]
    (fallback,) = [attributes for tag, attributes in tags if tag == "img"]
    assert source["media"] == "(prefers-color-scheme: dark)"
    for theme, image in (("light", image_of(fallback["src"])), ("dark", image_of(source["srcset"]))):
        ground, ink = (matplotlib.colors.to_rgba(themes(html)[theme][name]) for name in ("ground", "ink"))
        np.testing.assert_allclose(image[0, 0], ground, atol=1 / 255)
        assert np.isclose(image, ink, atol=1 / 255).all(axis=-1).any()


def test_a_page_does_not_depend_on_its_author_s_style_and_leaves_it_alone() -> None:
    html = render(PAGE)
    with matplotlib.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        assert render(PAGE) == html
        assert dict(matplotlib.rcParams) == before


def test_pages_may_be_made_in_several_threads() -> None:
    html = render(PAGE)
    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(lambda _: render(PAGE), range(3))) == {html}


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
    lonely = line()
    lonely.remove()
    with pytest.raises(ValueError, match="`draw` must return axes that belong to a figure"):
        render(Page("t", "s", [Section("one", [Figure(lambda: lonely, "", "")])]))


# Tables


def test_a_cell_knows_its_column_where_there_are_several() -> None:
    cells = [attributes for tag, attributes in Elements(render(PAGE)).tags if tag == "td"][1:]  # without the corner
    assert [attributes["data-label"] for attributes in cells] == ["left", "right"] * 2
    html = render(Page("t", "s", [Section("one", [Table(("only",), [Row("b", ("c",))])])]))
    assert "data-label=" not in html


INTERVAL = "0.9667 (0.952\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}0.98)"


def test_no_number_breaks_at_its_exponent() -> None:
    interval = INTERVAL.replace("0.952", "8.57e-05")
    html = fragment([Table(["a", "b"], [Row("c", [interval, "-1.5"])])])
    number, in_brackets = interval.split(" ")
    assert f'>{number} <span class="number">{in_brackets}</span></td>' in html
    assert ">-1.5<" in html


def test_a_summary_has_a_paragraph_a_line() -> None:
    assert re.findall('<p class="summary">(.*?)</p>', render(Page("t", "one.\ntwo.", []))) == ["one.", "two."]


@pytest.mark.parametrize(
    ("cells", "meaning", "is_stacked"),
    [
        ([INTERVAL], "", False),
        ([INTERVAL] * 4, "", True),
        (["1234567.5"] * 4, "", True),
        (["3", "5", "0.9998"], "", False),
        (["a cat", "a dog", "0.9998"], "", False),
        (["a rather long name of a class"] * 2 + ["0.9998"], "", True),  # would take a line a word
        (["3", "5", "0.9998"], "A sentence, which needs room.", True),
        (["0.9998"], "A sentence, which needs room.", False),
    ],
)
def test_columns_stand_below_each_other_on_a_phone_where_a_cell_would_be_broken_up(
    cells: list[str], meaning: str, is_stacked: bool
) -> None:
    table = Table([f"m{i}" for i in range(len(cells))], [Row("Accuracy", cells, meaning)])
    (kind,) = [attributes["class"] for tag, attributes in Elements(fragment([table])).tags if tag == "figure"]
    assert (kind == "table stacked") == is_stacked


def test_the_best_cells_are_marked_and_the_page_says_so() -> None:
    html = fragment([Table(("left", "right"), [Row("first", ("1", "2"), best=[1]), Row("second", ("3", "4"))])])
    assert re.findall("<strong>(.*?)</strong>", html) == ["2"]
    assert "Bold is best." in html
    assert "Bold" not in fragment([TABLE])


@pytest.mark.parametrize("name", ['<b title="x">&', "a\x1b[31mb", "\x00a\udcff"])
def test_no_name_is_markup_or_a_command(name: str) -> None:
    table = Table([name, "other"], [Row(name, [name, "1"], name)], name)
    page = Page(name, name, [Section(name, [Paragraph(name), table, Figure(line, name, name)])], name)
    html = render(page)
    html.encode("utf-8")
    elements = Elements(html)
    shown = name if name.isprintable() else re.sub("[\x00\x1b\udcff]", "\N{REPLACEMENT CHARACTER}", name)
    assert elements.text.count(shown) == 12
    labels = [
        value for tag, attributes in elements.tags for key, value in attributes.items() if key in ("data-label", "alt")
    ]
    assert labels == [shown, "other", shown]
    assert not {"b"} & {tag for tag, _ in elements.tags}
    assert "\x1b" not in str(table)


# Reports


def health() -> HealthReport:
    finding = Finding("mis_scaled_kl", "certain", ("T = 1000.",))
    epochs = [{"epoch": 1, "nll": 0.9, "val_accuracy": 0.5}, {"epoch": 2, "nll": 0.25, "val_accuracy": 0.75}]
    return HealthReport.of(finding, Quantities(temperature=1000.0), epochs)


def evaluation() -> Report:
    return bdl.evaluate([0, 1], [[0.9, 0.1], [0.2, 0.8]], num_resamples=0)


def outputs() -> Report:
    p = [[0.9, 0.1], [0.2, 0.8]]
    return bdl.evaluate({"kind": [0, 1], "size": [0, 1]}, {"kind": p, "size": p}, num_resamples=0)


@pytest.mark.parametrize("make", [evaluation, outputs, health])
def test_every_report_shows_itself_in_a_few_lines(make: Callable[[], Report]) -> None:
    report = make()
    lines = repr(report).splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 120
    for block in report.glance():
        first = block.text if isinstance(block, Paragraph) else block.columns[0]
        assert first in Elements(report._repr_html_()).text


@pytest.mark.parametrize("make", [evaluation, outputs, health])
def test_every_report_is_the_same_as_a_file_and_as_text(make: Callable[[], Report], tmp_path: Path) -> None:
    report = make()
    report.save_json(tmp_path / "figures.json")
    text = (tmp_path / "figures.json").read_text()
    assert text == report.to_json()
    assert json.loads(text) == report.to_dict()
    if isinstance(report, HealthReport | Evaluation):  # whose pages hold few figures
        report.save_html(tmp_path / "page.html", title="My title")
        html = (tmp_path / "page.html").read_text()
        assert html == report.to_html(title="My title")
        assert "<h1>My title</h1>" in html
    assert report.page().title in ("Training health", "How good is the uncertainty?")
    assert report.page("My title").title == "My title"


@pytest.mark.parametrize(
    ("make", "method", "new"), [(health, "to_html", "save_html"), (evaluation, "to_json", "save_json")]
)
def test_a_path_is_still_written_with_a_warning(
    make: Callable[[], Report], method: str, new: str, tmp_path: Path
) -> None:
    with pytest.warns(DeprecationWarning, match=rf"`{method}\(path\)` is deprecated, use `{new}\(path\)`"):
        text = getattr(make(), method)(tmp_path / "file")
    assert (tmp_path / "file").read_text() == text


def test_a_diagnosis_names_its_verdict_as_it_is_and_says_what_its_curves_show() -> None:
    html = health().to_html()
    assert "mis_scaled_kl (certain): The KL has the wrong weight" in html
    alts = [attributes["alt"] for tag, attributes in Elements(html).tags if tag == "img"]
    assert alts == ["Curves of 2 recorded epochs: NLL from 0.9 to 0.25, accuracy from 0.5 to 0.75."]


def test_a_caption_speaks_of_what_is_drawn_and_a_comparison_of_what_was_recorded() -> None:
    finding, epochs = Finding("healthy", "possible", ()), [{"epoch": 1, "nll": 0.5}, {"epoch": 2, "nll": 0.25}]
    assert "accuracy above." in health().to_html()
    assert "accuracy above." not in HealthReport.of(finding, Quantities(), epochs).to_html()
    page = comparison(
        {"record": HealthReport.of(finding, Quantities(epoch=2)), "model": HealthReport.of(finding, Quantities())}
    )
    (table,) = page.sections[0].blocks
    assert isinstance(table, Table)
    assert {row.name: row.cells for row in table.rows}["epochs"] == ["2", "none"]


# Files


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
