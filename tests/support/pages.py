"""The code that a page of the docs shows, to be run by tests of what the page says."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(
    r"^```\{(?P<kind>\w+)\}\n(?P<options>(?::[^\n]*\n)*)(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Page:
    """A page whose hidden setup has run; its blocks share the names, as for Sphinx.

    A test may rebind names before a block runs.
    """

    def __init__(self, name: str) -> None:
        self.path = DOCS / f"{name}.md"
        self.text = self.path.read_text(encoding="utf-8")
        self.names: dict[str, Any] = {}
        self._run("testsetup", "")

    def __getitem__(self, name: str) -> Any:
        """Return what a name of the page is bound to."""
        return self.names[name]

    def run(self, *words: str) -> "Page":
        """Run the blocks that have some of these words, or all blocks, and return the page."""
        for word in words or ("",):
            assert self._run("testcode", word), f"No block of {self.path.name} has {word!r}."
        return self

    def clean_up(self) -> None:
        """Undo what the setup did outside its names."""
        self._run("testcleanup", "")

    def _run(self, kind: str, word: str) -> int:
        """Run blocks of one kind and return their number; a traceback has the page's lines."""
        blocks = [
            block
            for block in _BLOCK.finditer(self.text)
            if block["kind"] == kind and word in block["code"]
        ]
        for block in blocks:
            above = "\n" * self.text.count("\n", 0, block.start("code"))
            exec(compile(above + block["code"], self.path, "exec"), self.names)
        return len(blocks)


OpenPage = Callable[[str], Page]
"""Returns a page by its path below docs, without the ending."""
