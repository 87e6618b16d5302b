"""What the tests of the pages share."""

from collections.abc import Iterator

import pytest

from tests.support.pages import OpenPage, Page


@pytest.fixture
def open_page() -> Iterator[OpenPage]:
    """Open pages, and clean up after them at the end of the test."""
    pages: list[Page] = []

    def opened(name: str) -> Page:
        pages.append(Page(name))
        return pages[-1]

    yield opened
    for page in pages:
        page.clean_up()
