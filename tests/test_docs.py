"""The figures on every page are those of docs/results."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
_SPEC = importlib.util.spec_from_file_location("update_tables", ROOT / "docs" / "update_tables.py")
update_tables = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(update_tables)


@pytest.mark.parametrize("page", update_tables.PAGES, ids=lambda page: page.name)
def test_tables_are_up_to_date(page):
  assert update_tables.filled(page.read_text()) == page.read_text()
