"""The documentation: every public name has its entry, every page its place, every block is run."""

import re
from pathlib import Path

import pytest

import balanced_sam

DOCS = Path(__file__).parents[2] / "docs"
MADE = {"_build", "generated"}
PAGES = sorted(path for path in DOCS.rglob("*.md") if not MADE & {*path.parts})
SCRIPTS = {"tutorial/rare_targets", "gallery/index"}
"""Pages that sphinx-gallery makes of scripts, or of a folder of them."""
PUBLIC = {*balanced_sam.__all__, "torchmetrics.RegionMetrics"}


def reference() -> str:
    return (DOCS / "reference.md").read_text(encoding="utf-8")


def page_name(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


def toctree_entries(page: Path) -> list[str]:
    """Return the pages, relative to the folder of docs, in the toctrees of ``page``."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(
        r"^(?:```|:::)\{toctree\}\n(.*?)^(?:```|:::)$", text, re.DOTALL | re.MULTILINE
    )
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    folder = page.parent.relative_to(DOCS)
    return [(folder / line).as_posix() for line in lines if line and not line.startswith(":")]


def test_reference_documents_every_public_name_once() -> None:
    entries = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", reference(), re.MULTILINE)
    assert sorted(name.removeprefix("balanced_sam.") for name in entries) == sorted(PUBLIC)


def test_reference_table_lists_every_public_name_once() -> None:
    (table,) = re.findall(r"\.\. autosummary::\n((?: {3}.*\n|\n)+)", reference())
    names = [line.strip() for line in table.splitlines() if line.strip()]
    assert sorted(name for name in names if not name.startswith(":")) == sorted(PUBLIC)


def test_every_page_is_in_the_toctree_once() -> None:
    entries = [entry for page in PAGES for entry in toctree_entries(page)]
    pages = [page_name(page) for page in PAGES]
    pages += [f"generated/{script}" for script in SCRIPTS]
    assert sorted([*entries, "index"]) == sorted(pages)


def test_every_term_of_the_glossary_is_linked_from_a_page() -> None:
    glossary = (DOCS / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\w.*)\n  \S", glossary.split(":::{glossary}")[1], re.MULTILINE)
    assert len(terms) > 20
    texts = [page.read_text(encoding="utf-8") for page in PAGES if page.stem != "glossary"]
    linked = {
        (target or title)
        for text in texts
        for title, target in re.findall(r"\{term\}`([^`<]+?)(?: <([^>]+)>)?`", text)
    }
    assert {term for term in terms if term not in linked} == set()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_page_shows_python_only_in_blocks_that_are_run(page: Path) -> None:
    fences = re.findall(
        r"^(?:`{3,}|:{3,})([^`:\s]\S*)", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    run = {"{testsetup}", "{testcleanup}", "{testcode}", "{testoutput}", "{doctest}"}
    other = {"{eval-rst}", "{include}", "{literalinclude}", "{toctree}", "{warning}", "{note}"}
    other |= {"{dropdown}", "{glossary}", "{grid}", "{grid-item-card}", "{tab-set}", "{tab-item}"}
    other |= {"sh"}
    if page.stem == "switch":
        # The code of other libraries, which are not installed.
        other |= {"{code-block}"}
    directives = {fence.split("}")[0] + "}" if fence.startswith("{") else fence for fence in fences}
    assert directives <= run | other


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_page_hides_no_code_but_its_setup(page: Path) -> None:
    hidden = r"^`{3,}\{(?:testcode|doctest)\}\n(?::.*\n)*:hide:"
    assert re.findall(hidden, page.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("path", sorted(DOCS.glob("inventories/*.txt")), ids=lambda path: path.stem)
def test_inventory_has_a_name_a_role_and_an_address_a_line(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    assert entries
    names = []
    for entry in entries:
        match = re.fullmatch(r"(\S+) py:(class|function|method|data|exception) 1 (\S+) -", entry)
        assert match, entry
        assert "#" in match[3]
        names.append(match[1])
    assert len(names) == len(set(names))
