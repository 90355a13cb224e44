"""The README's Python code runs as it stands, prints what stands below it, and the page stays short."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", TEXT, flags=re.DOTALL)


def words(text):
    """Lines without their figures, which vary with initial weights, and with the spaces that line them up as one."""
    return [re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)?(e-\d+)?", "#", line)).strip() for line in text.splitlines()]


@pytest.mark.parametrize(("code", "output"), BLOCKS, ids=[f"block {number}" for number in range(1, len(BLOCKS) + 1)])
def test_code_blocks_print_what_stands_below_them(code, output, capsys):
    exec(compile(code, "README.md", "exec"), {})
    printed = words(capsys.readouterr().out)
    for line in words(output):
        start = line.removesuffix("...")
        assert not start or any(each.startswith(start) for each in printed), line


def test_every_code_block_has_its_output():
    assert len(BLOCKS) == TEXT.count("```python") == 2


def test_the_readme_is_short_and_begins_with_a_picture():
    lines = TEXT.splitlines()
    assert len(lines) <= 110
    assert any(line.startswith("![") for line in lines[:10])
    assert len(BLOCKS[0][0].strip().splitlines()) <= 10
