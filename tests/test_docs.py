"""The figures on every page are those of docs/results."""

import pytest

from docs import update_tables


@pytest.mark.parametrize("page", update_tables.PAGES, ids=lambda page: page.name)
def test_tables_are_up_to_date(page):
  assert update_tables.filled(page.read_text()) == page.read_text()
