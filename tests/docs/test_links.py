"""Pages: links resolve, files named in the code exist, lines are short."""

import html
import re
import unicodedata
from pathlib import Path

import pytest

from docs.hooks import make_pages

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)(```+|~~~+)[^\n]*\n.*?^\1\2`*$", flags=re.MULTILINE | re.DOTALL)


def name_of(page):
    return page.relative_to(REPOSITORY).as_posix()


@pytest.fixture(scope="module")
def generated():
    """Return the pages that the site generates from the code: path -> text."""
    return {DOCS / name: text for name, text in make_pages().items()}


def without_code(text):
    return re.sub(r"`[^`\n]*`", "``", FENCE.sub("", text))


def anchors(text):
    """Return the anchors of a page that are the same on the site and on GitHub, and those set by hand."""
    found = set(re.findall(r"\{ *#([\w-]+) *\}", text)) | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#+ +(.*?) *#*$", FENCE.sub("", text), flags=re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", html.unescape(heading)).replace("`", "").strip().lower()
        github = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
        site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())
        if github == site:
            found.add(site)
    return found


def explain(page, link, generated):
    """Return what is wrong with a relative link, or None."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    text = generated.get(target)
    if text is None and target.suffix == ".md" and target.is_file():
        text = target.read_text(encoding="utf-8")
    if text is None:
        return None if target.exists() and not anchor else f"{link}: no such file"
    return None if not anchor or anchor in anchors(text) else f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page, generated):
    links = LINK.findall(without_code(page.read_text(encoding="utf-8")))
    inside = [link for link in links if not link.startswith(("https://", "http://", "mailto:"))]
    assert [wrong for link in inside if (wrong := explain(page, link, generated))] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_of_the_site_have_no_relative_links_outside_it(page):
    """The site contains only docs/; other files need a full address."""
    if DOCS in page.parents:
        links = LINK.findall(without_code(page.read_text(encoding="utf-8")))
        paths = [link.partition("#")[0] for link in links if not link.startswith(("https://", "http://", "mailto:"))]
        assert all((page.parent / path).resolve().is_relative_to(DOCS) for path in paths if path)


def test_pages_named_in_code_and_text_exist():
    folders = ("landprior", "tests", "benchmarks", "configs", "docs", ".ci")
    files = [path for folder in folders for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
    for path in [*files, *REPOSITORY.glob("*.md"), *REPOSITORY.glob("*.toml")]:
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".ini", ""}:
            for name in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8")):
                assert (REPOSITORY / name).is_file(), f"{path} names {name}"


def test_every_page_of_the_site_is_in_its_navigation():
    nav = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    listed = re.findall(r": *([\w/-]+\.md)$", nav, flags=re.MULTILINE)
    listed += re.findall(r"^ +- ([\w/-]+/index\.md)$", nav, flags=re.MULTILINE)  # first pages of sections
    assert sorted(listed) == sorted(["modules.md", *(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))])


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name_of)
def test_lines_of_prose_are_short(page):
    """Rows of tables and code cannot be wrapped, nor can links."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    long = [line for line in text.splitlines() if len(line) > 120 and not line.lstrip().startswith("|")]
    assert [line for line in long if len(re.sub(r"\]\([^)]*\)", "]", line)) > 120] == []


@pytest.mark.parametrize("name", ["clustering", "density", "partial-labels", "superres", "text"])
def test_pages_with_a_page_in_the_research_log_are_short(name):
    (page,) = (path for path in PAGES if path.name == f"{name}.md" and path.parent.name != "research-log")
    assert (DOCS / "research-log" / page.name).is_file()
    words = [word for word in page.read_text(encoding="utf-8").split() if any(map(str.isalnum, word))]
    assert len(words) <= 700


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name_of)
def test_modules_named_on_pages_exist(page):
    """By their path from the repository, the package or the packages of landcover."""
    roots = (REPOSITORY, REPOSITORY / "landprior", REPOSITORY / "landprior" / "landcover")
    named = re.findall(r"(?<![\w/<{.*~-])((?:[a-z_]+/)+(?:[a-z_]+\.py)?)(?![\w/*.{])", page.read_text(encoding="utf-8"))
    for path in {path for path in named if path.endswith(".py")}:
        assert any((root / path).exists() for root in roots), path
