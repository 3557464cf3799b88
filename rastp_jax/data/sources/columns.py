"""Which columns of a file are meant: the named ones, or well-known names where nothing was named."""

import dataclasses
import re
from collections.abc import Sequence

from rastp_jax.config import DataConfig
from rastp_jax.data.sources.csv_files import SEPARATORS
from rastp_jax.data.sources.tables import Table
from rastp_jax.errors import InputError

# Names under which published files have these columns; used only where a setting has its default.
# Case, blanks and the signs between words do not count: "userId" is "USER_ID".
_KNOWN_AS = {
  "user_column": (
    "user",
    "user_id",
    "user_idx",
    "uid",
    "reviewer_id",
    "customer_id",
    "visitor_id",
    "session",
    "session_id",
  ),
  "item_column": (
    "item",
    "item_id",
    "iid",
    "product_id",
    "parent_asin",
    "asin",
    "movie_id",
    "article_id",
    "business_id",
    "track_id",
    "aid",
  ),
  "time_column": ("timestamp", "time", "ts", "event_time", "datetime", "date", "unix_review_time", "unix_time"),
}
# The text of an items file, for which a file need not have any.
_TEXT_KNOWN_AS = {
  "title_column": ("title", "name", "item_name", "item_title", "product_name", "product_title"),
  "brand_column": ("brand", "manufacturer"),
  "categories_column": ("categories", "category", "genres", "genre"),
}
# In an items file also this, which in a file of interactions would be the interaction's.
_ITEM_ID = "id"
# ... and these where a row holds a list of items.
_ITEM_LISTS = ("items", "item_ids", "products", "history", "sequence", "events")
_ALL_KNOWN_AS = _KNOWN_AS | _TEXT_KNOWN_AS
_DEFAULTS = DataConfig()
_TEXT_DEFAULTS = [getattr(_DEFAULTS, role) for role in _TEXT_KNOWN_AS]


@dataclasses.dataclass(frozen=True)
class Columns:
  """The columns of an interactions file; `time` is "" where there is none, and the order of the file counts."""

  user: str
  item: str
  time: str
  in_lists: bool = False  # whether a row has several items
  notes: tuple[str, ...] = ()


def fits(header: Sequence[str], config: DataConfig, roles: Sequence[str] = tuple(_KNOWN_AS)) -> int:
  """How many of the columns that are looked for a header has."""
  return sum(_find(header, config, role) is not None for role in roles)


def fits_items(header: Sequence[str], config: DataConfig) -> int:
  """The same of an items file, which may call its ids by one name more."""
  has_ids = _find(header, config, "item_column") is not None or _ITEM_ID in map(str.lower, header)
  return has_ids + fits(header, config, tuple(_TEXT_KNOWN_AS))


def interaction_columns(table: Table, config: DataConfig) -> Columns:
  """The columns of an interactions file.

  Raises:
    InputError: some are missing; the sentence names all of them, and what may be wrong with the file.
  """
  roles = [role for role in _KNOWN_AS if getattr(config, role)]
  lists = [name for name in table.lists if _plain(name) in map(_plain, _ITEM_LISTS)]
  if lists and _find(table.columns, config, "item_column") is None and config.item_column == _DEFAULTS.item_column:
    config = dataclasses.replace(config, item_column=lists[0])
  notes = [f"column {config.item_column!r} is taken as item"] if lists[:1] == [config.item_column] else []
  if config.item_column in table.lists and _find(table.columns, config, "time_column") is None:
    roles.remove("time_column")
    notes.append(f"no column holds times: the items in {config.item_column!r} are taken in the order of their list")
  found = _all(table, config, roles, "data.columns")
  for role, name in found.items():
    other = next(one for one, same in found.items() if same == name)
    if role != other:
      raise InputError(
        f"{table.path}: column {name!r} is taken as {other.split('_')[0]} and as {role.split('_')[0]}: set "
        f"config.data.{other} and config.data.{role} to two columns."
      )
  notes += [
    f"column {name!r} is taken as {role.split('_')[0]}{_rather_than(table, role, name)}"
    for role, name in found.items()
    if _guessed(config, role, name)
  ]
  item = found["item_column"]
  return Columns(found["user_column"], item, found.get("time_column", ""), item in table.lists, tuple(notes))


def item_id_column(table: Table, config: DataConfig, interactions: Columns) -> str:
  """The column with the ids of an items file: the named one, or the one that is called as in the interactions file."""
  if config.item_column not in table.columns and interactions.item in table.columns:
    return interactions.item
  if interactions.in_lists:  # whose name is that of several
    config = dataclasses.replace(config, item_column=_DEFAULTS.item_column)
  if _find(table.columns, config, "item_column") is None and _ITEM_ID in map(str.lower, table.columns):
    return next(name for name in table.columns if name.lower() == _ITEM_ID)
  return _all(table, config, ["item_column"], "data.item_file_columns")["item_column"]


def with_text_columns(table: Table, config: DataConfig) -> DataConfig:
  """The config with the text columns that an items file has; adds to the table's notes which were taken or lack."""
  found = {role: _find(table.columns, config, role) for role in _TEXT_KNOWN_AS}
  for role, name in found.items():
    if name is not None and _guessed(config, role, name):
      table.notes.append(f"column {name!r} is taken as {role.split('_')[0]}{_rather_than(table, role, name)}")
  named = {getattr(config, role) for role, name in found.items() if name is None} - set(_TEXT_DEFAULTS)
  for name in sorted(named | set(config.extra_columns) - set(table.columns)):
    table.notes.append(f"WARNING: {table.path.name} has no column {name!r}: its columns are {', '.join(table.columns)}")
  return dataclasses.replace(config, **{role: name for role, name in found.items() if name is not None})


def _all(table: Table, config: DataConfig, roles: Sequence[str], headers: str) -> dict[str, str]:
  found = {role: _find(table.columns, config, role) for role in roles}
  missing = [role for role, name in found.items() if name is None]
  if not missing:
    return {role: name for role, name in found.items() if name is not None}
  if table.headerless:
    raise InputError(
      f"{table.path} has no line of column names: its first line is {table.first_line[:100]!r}; name its columns in "
      f"order with config.{headers}, like --config.{headers}=\"('user', 'item', 'timestamp')\"."
    )
  names = " and ".join(repr(getattr(config, role)) for role in missing)
  hint = (
    "set " + " and ".join(f"config.data.{role}" for role in missing) + " to the right one" + "s" * (len(missing) > 1)
  )
  if missing == ["time_column"]:
    hint += ", or to '' if the rows are in time order"
  if table.separator and len(missing) == len(roles) and len(table.columns) > 1:
    hint += f", or, if these are values of a row, name the columns in order with config.{headers}"
  if len(table.columns) == 1 and table.separator:
    hint += (
      ", or, if this is one line of several columns, config.data.separator to what separates them (it was read as "
      f"separated by {SEPARATORS.get(table.separator, repr(table.separator))})"
    )
  shown = ", ".join(name if name == name.strip() else repr(name) for name in table.columns)
  what = "column" if len(missing) == 1 else "columns"
  raise InputError(f"{table.path} has no {what} {names}: its columns are {shown}; {hint}.")


def _find(header: Sequence[str], config: DataConfig, role: str) -> str | None:
  name = getattr(config, role)
  if not name or name in header:
    return name
  known = _ALL_KNOWN_AS[role] if name == getattr(_DEFAULTS, role) else ()
  plain = {_plain(other): other for other in reversed(header)}
  return next((plain[_plain(other)] for other in known if _plain(other) in plain), None)


def _plain(name: str) -> str:
  return re.sub(r"[\s_.-]", "", name).lower()


def _rather_than(table: Table, role: str, name: str) -> str:
  """Names the columns that could have been taken as well."""
  known = [_plain(other) for other in _ALL_KNOWN_AS[role]]
  others = [other for other in table.columns if other != name and _plain(other) in known]
  return f", not {' or '.join(map(repr, others))}" if others else ""


def _guessed(config: DataConfig, role: str, name: str) -> bool:
  return name != getattr(config, role)
