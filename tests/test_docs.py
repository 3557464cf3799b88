"""The README's figures are those of docs/results."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def test_readme_tables_are_up_to_date(tmp_path):
  (tmp_path / "docs").mkdir()
  for path in ("README.md", "docs/update_readme.py"):
    (tmp_path / path).write_text((ROOT / path).read_text())
  (tmp_path / "docs" / "results").symlink_to(ROOT / "docs" / "results")
  subprocess.run([sys.executable, tmp_path / "docs" / "update_readme.py"], check=True)
  assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
