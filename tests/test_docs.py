"""What docstrings cite can be read in the repository."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEADINGS = {
    line.lstrip("# ").strip()
    for line in (ROOT / "docs" / "method.md").read_text().splitlines()
    if line.startswith("## ")
}
CODE = sorted(
    path for room in ("percent_ray", "jobs", "benchmarks") for path in (ROOT / room).rglob("*.py")
)
CITATION = re.compile(r'docs/method\.md[,:]? ((?:"[^"]+"(?:, | and )?)+)')


def text_of(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8").split())


def test_every_cited_heading_of_the_method_page_exists():
    cited = [
        (path.relative_to(ROOT).as_posix(), heading)
        for path in CODE
        for group in CITATION.findall(text_of(path))
        for heading in re.findall(r'"([^"]+)"', group)
    ]
    assert len(cited) > 20
    assert not [(path, heading) for path, heading in cited if heading not in HEADINGS]
    assert HEADINGS - {"Setting", "The law"} <= {heading for _, heading in cited}


def test_no_page_or_equation_is_cited_that_is_not_there():
    for path in CODE:
        text = text_of(path)
        assert "PAPER" not in text, path
        for page in re.findall(r"docs/[\w-]+\.md", text):
            assert (ROOT / page).is_file(), (path, page)
        for group in re.findall(r"2605\.12112, eqs?\. ([\d, and-]+)", text):
            assert all(1 <= int(number) <= 21 for number in re.findall(r"\d+", group)), path


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_has_at_most_200_lines_and_its_links_lead_somewhere(page):
    text = page.read_text()
    assert len(text.splitlines()) <= 200
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link
