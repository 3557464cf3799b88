"""The Amazon 2023 files as published (Hou et al., 2024): reviews and metadata as JSON lines, or the 5-core CSV."""

import dataclasses
import pathlib
from typing import Any

from rastp_jax.config import DataConfig
from rastp_jax.data.items import Item
from rastp_jax.data.sources import raw_files
from rastp_jax.data.sources.interactions import InteractionFiles
from rastp_jax.data.sources.tables import Table
from rastp_jax.errors import InputError


class Amazon2023Files(InteractionFiles):
  """CATEGORY.jsonl or CATEGORY.csv, and meta_CATEGORY.jsonl; items are told by `parent_asin`, times are ms."""

  def _item(self, item_id: str, row: dict[str, Any]) -> Item:
    names = ("description", "features", "price", *self._config.extra_columns)
    extra = {name: raw_files.as_text(row.get(name)) for name in names}
    return Item(
      item_id=item_id,
      asin=item_id,
      title=raw_files.as_text(row.get("title")),
      brand=raw_files.as_text(row.get("store")),
      categories=raw_files.any_categories(row.get("categories") or row.get("main_category")),
      extra={name: text for name, text in extra.items() if text and text != "None"},
    )


class Amazon2023:
  """The form of these files in a directory: a CSV or JSONL file of reviews with a parent_asin."""

  def find(self, root: pathlib.Path, category: str | None) -> list[pathlib.Path]:
    del category  # the named datasets are those of 2014
    metas = raw_files.glob(root, "meta_*.jsonl")
    beside = [path for meta in metas for path in _reviews(root, _category(meta))]
    if beside:
      return beside
    alone = raw_files.glob(root, "*.csv", "*.jsonl")
    stems = ("interactions.", "items.", "meta_")
    return [path for path in alone if not path.name.startswith(stems) and _has_parents(path)]

  def open(self, root: pathlib.Path, found: list[pathlib.Path], config: DataConfig) -> Amazon2023Files:
    if len(found) > 1:
      raise InputError(f"{root} holds {found[0].name} and {found[1].name}: expected one of them; move the other away.")
    read = dataclasses.replace(config, user_column="user_id", item_column="parent_asin", time_column="timestamp")
    category = found[0].name.removesuffix(".gz").rpartition(".")[0]
    metas = raw_files.find(root, f"meta_{category}.jsonl")
    return Amazon2023Files(str(root), read, Table(found), Table(metas[:1]) if metas else None, config)

  def wanted(self, category: str | None) -> str:
    del category
    return "CATEGORY.jsonl or .csv and meta_CATEGORY.jsonl (Amazon 2023)"


def _category(meta: pathlib.Path) -> str:
  return meta.name.removeprefix("meta_").removesuffix(".gz").removesuffix(".jsonl")


def _reviews(root: pathlib.Path, category: str) -> list[pathlib.Path]:
  return raw_files.find(root, f"{category}.jsonl", f"{category}.csv")


def _has_parents(path: pathlib.Path) -> bool:
  """Whether the first line names user_id and parent_asin."""
  try:
    _, line = next(raw_files.lines(path), (1, ""))
  except InputError:  # not text, or damaged: no file of this form, whatever else it is
    return False
  return "user_id" in line and "parent_asin" in line
