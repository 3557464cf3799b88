"""The Amazon 2018 files as published (Ni et al., 2019): JSON lines of reviews and of product metadata."""

import dataclasses
import html
import pathlib
from typing import Any

from rastp_jax.config import DataConfig
from rastp_jax.data.items import Item
from rastp_jax.data.sources import raw_files
from rastp_jax.data.sources.interactions import InteractionFiles
from rastp_jax.data.sources.tables import Table
from rastp_jax.errors import InputError


class Amazon2018Files(InteractionFiles):
  """CATEGORY_5.json (or CATEGORY.json) and meta_CATEGORY.json, gzipped or not; HTML entities are unescaped."""

  def _item(self, item_id: str, row: dict[str, Any]) -> Item:
    text = {
      name: html.unescape(raw_files.as_text(row.get(name))) for name in ("title", "brand", "description", "price")
    }
    text["features"] = html.unescape(raw_files.as_text(row.get("feature")))
    more = {name: html.unescape(raw_files.as_text(row.get(name))) for name in self._config.extra_columns}
    paths = tuple(html.unescape(path) for path in raw_files.any_categories(row.get("category")))
    extra = {**{name: text[name] for name in ("description", "features", "price")}, **more}
    return Item(
      item_id=item_id,
      asin=item_id,
      title=text["title"],
      brand=text["brand"],
      categories=paths,
      extra={name: value for name, value in extra.items() if value},
    )


class Amazon2018:
  """The form of these files in a directory: meta_CATEGORY.json beside CATEGORY_5.json or CATEGORY.json."""

  def find(self, root: pathlib.Path, category: str | None) -> list[pathlib.Path]:
    del category  # the named datasets are those of 2014
    metas = raw_files.glob(root, "meta_*.json")
    return [path for meta in metas for path in _reviews(root, _category(meta))]

  def open(self, root: pathlib.Path, found: list[pathlib.Path], config: DataConfig) -> Amazon2018Files:
    if len(found) > 1:
      raise InputError(f"{root} holds {found[0].name} and {found[1].name}: expected one of them; move the other away.")
    read = dataclasses.replace(config, user_column="reviewerID", item_column="asin", time_column="unixReviewTime")
    category = found[0].name.removesuffix(".gz").removesuffix(".json").removesuffix("_5")
    metas = raw_files.find(root, f"meta_{category}.json")
    return Amazon2018Files(str(root), read, Table(found), Table(metas[:1]), config)

  def wanted(self, category: str | None) -> str:
    del category
    return "CATEGORY_5.json and meta_CATEGORY.json (Amazon 2018)"


def _category(meta: pathlib.Path) -> str:
  return meta.name.removeprefix("meta_").removesuffix(".gz").removesuffix(".json")


def _reviews(root: pathlib.Path, category: str) -> list[pathlib.Path]:
  return raw_files.find(root, f"{category}_5.json", f"{category}.json")
