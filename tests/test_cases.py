"""Files as people have them: each is read with the right values, or refused in a sentence that says what to do."""

import dataclasses
import datetime
import decimal
import gzip
import itertools
import json
import os
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from rastp_jax import config as config_lib
from rastp_jax.config import Config, DataConfig, SemanticIdsConfig
from rastp_jax.data import histories, prepared
from rastp_jax.data import vectors as vectors_lib
from rastp_jax.data.sources import csv_files, detect
from rastp_jax.errors import InputError
from rastp_jax.semantic_ids import health_plot
from rastp_jax.semantic_ids.preparation import prepare as prepare_all

ROWS = [(f"u{u}", f"i{k}", 100 + u + k) for u in range(3) for k in range(4)]
READ = {f"u{u}": ["i0", "i1", "i2", "i3"] for u in range(3)}


@pytest.fixture(autouse=True)
def quick_plot(monkeypatch):
  monkeypatch.setattr(health_plot, "draw", lambda *_: b"a picture")


def lines(rows=ROWS, separator=",", header="user,item,timestamp") -> str:
  head = [header.replace(",", separator)] if header else []
  return "".join(f"{line}\n" for line in [*head, *(separator.join(map(str, row)) for row in rows)])


def write(tmp_path, files: dict) -> pathlib.Path:
  root = tmp_path / "raw"
  root.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
      pa.parquet.write_table(content, path)
      continue
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
  return root


def data_config(tmp_path, **settings) -> DataConfig:
  return DataConfig(**{"dataset": "mine", "data_dir": str(tmp_path / "data"), "k_core": 1, **settings})


def read(tmp_path, files: dict, **settings) -> tuple[prepared.Prepared, dict[str, list[str]]]:
  """The prepared dataset, and its histories by user, as item ids."""
  config = data_config(tmp_path, **settings)
  found, _ = detect.prepare_dataset(config, str(write(tmp_path, files)))
  return found, by_user(found)


def by_user(found: prepared.Prepared) -> dict[str, list[str]]:
  names = found.item_ids
  items, offsets = found.histories()
  parts = np.split(items, offsets[1:-1])
  return {user: [names[k] for k in part] for user, part in zip(found.user_ids, parts, strict=True)}


def refused(tmp_path, files: dict, sentence: str, **settings) -> None:
  with pytest.raises(InputError, match=sentence) as caught:
    read(tmp_path, files, **settings)
  assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


# Separators, headers and names of files.


@pytest.mark.parametrize(("separator", "said"), list(csv_files.SEPARATORS.items()))
@pytest.mark.parametrize("name", ["interactions.csv", "interactions.tsv.gz", "interactions.dat", "interactions.txt"])
def test_separators_are_recognised_and_said(tmp_path, separator, said, name):
  found, users = read(tmp_path, {name: lines(separator=separator)})
  assert users == READ
  assert (f"columns are separated by {said}" in found.describe()) == (separator != ",")


@pytest.mark.parametrize("separator", ["¦", "||", "\x01"])
def test_a_separator_may_be_any_characters(tmp_path, monkeypatch, separator):
  monkeypatch.setattr(csv_files, "_BLOCK", 16)
  header, rows = "user,item,timestamp,review", [(u, f'"{i}"', t, '"a\nb"') for u, i, t in ROWS]
  assert read(tmp_path, {"interactions.csv": lines(rows, separator, header)}, separator=separator)[1] == READ
  files = {"interactions.csv": lines([(*row, '"bad' if row[2] == 101 else "ok") for row in ROWS], separator, header)}
  refused(tmp_path / "x", files, "line 3 opens a quotation mark", separator=separator)


def test_what_a_wrong_separator_was_is_said(tmp_path):
  refused(tmp_path, {"interactions.csv": lines()}, "it was read as separated by tabs", separator="tab")
  files = {"interactions.csv": "sep=;\n" + lines(separator=";")}
  refused(tmp_path / "x", files, "begins with 'sep=;', which only Excel understands: remove this line")


@pytest.mark.parametrize("columns", [("user", "item", "timestamp"), ("item", "user", "timestamp")])
def test_a_header_is_no_row_although_columns_are_named(tmp_path, columns):
  files = {"interactions.csv": lines(header="uid,iid,timestamp")}
  refused(
    tmp_path, files, "column names uid, iid, timestamp in its first line, but config.data.columns", columns=columns
  )


@pytest.mark.parametrize(("header", "columns"), [("item_id,name", ("item", "title")), ("id,Title", ("title", "item"))])
def test_a_header_is_no_item_although_columns_are_named(tmp_path, header, columns):
  files = {"interactions.csv": lines(), "items.csv": f"{header}\ni0,Tea\n"}
  refused(
    tmp_path,
    files,
    f"column names {', '.join(header.split(','))} .*config.data.item_file_columns",
    item_file_columns=columns,
  )


def test_an_items_file_without_a_header_is_read_whole(tmp_path):
  files = {"interactions.csv": lines(), "items.csv": "i0;Tea\ni1;Pot\n"}
  found, _ = read(tmp_path, files, item_file_columns=("item", "title"))
  assert [item.title for item in found.items][:2] == ["Tea", "Pot"]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|", "::"])
def test_a_file_without_a_header_is_refused_until_its_columns_are_named(tmp_path, separator):
  files = {"interactions.csv": lines([(u, t, i) for u, i, t in ROWS], separator, header="")}
  refused(tmp_path, files, r"has no line of column names: its first line is .*u0.*i0.*with config.data.columns")
  found, users = read(tmp_path, files, columns=("user", "timestamp", "item"))
  assert users == READ and found.counts["interactions read"] == 12
  refused(tmp_path / "x", files, "has 3 columns in its first line.*but the config names 2", columns=("user", "item"))
  said = r"names 1, \('user,timestamp,item',\): .* in quotation marks each"  # what a shell makes of three names
  refused(tmp_path / "y", files, said, columns=("user,timestamp,item",))


def test_yoochoose_keeps_its_first_row(tmp_path):
  rows = [(s, f"2014-04-07T10:{50 + k}:09.277Z", 214536500 + k, 0) for s in (1, 2) for k in range(4)]
  files = {"interactions.csv": lines(rows, header="")}
  refused(tmp_path, files, "with config.data.columns")
  _, users = read(tmp_path, files, columns=("user", "timestamp", "item", "_"))
  assert users == {user: ["214536500", "214536501", "214536502", "214536503"] for user in "12"}


@pytest.mark.parametrize("mark", ["\ufeff", ""])
@pytest.mark.parametrize(
  "header",
  [
    "user, item , timestamp",
    '"user","item","timestamp"',
    "user_id:token,item_id:token,timestamp:float",
    "user:token,item,timestamp",
  ],
)
def test_what_stands_around_names_is_no_part_of_them(tmp_path, mark, header):
  text = lines([(user, f" {item}", f" {time} ") for user, item, time in ROWS], header=header)
  assert read(tmp_path, {"interactions.csv": mark + text})[1] == READ


def test_a_byte_order_mark_is_no_text_anywhere(tmp_path):
  joined = lines(ROWS[:6]) + "\ufeff" + lines(ROWS[6:], header="")
  assert read(tmp_path / "joined", {"interactions.csv": joined})[1] == READ
  rows = "".join(json.dumps({"user": u, "item": i, "timestamp": t}) + "\n" for u, i, t in ROWS)
  items = '\ufeff{"item": "i1", "title": "One"}\n'
  found, users = read(tmp_path, {"interactions.jsonl": "\ufeff" + rows, "items.jsonl": items})
  assert users == READ and found.items[1].title == "One"
  refused(tmp_path / "x", {"interactions.csv": lines().encode("utf-16")}, "UTF-16 text: write the file again in UTF-8")


@pytest.mark.parametrize("name", ["interactions.csv", "shop.inter"])
def test_recbole(tmp_path, name):
  header = "user_id:token,item_id:token,rating:float,timestamp:float"
  log = lines([(u, i, 4, t) for u, i, t in ROWS], "\t", header)
  item = 'item_id:token\ttitle:token_seq\tclass:token_seq\ni0\tTea "green\ttea hot\n'
  found, users = read(tmp_path, {name: log, "shop.item": item}, categories_column="class")
  assert users == READ and found.items[0].title == 'Tea "green' and found.items[0].categories == ("tea hot",)
  assert "column 'user_id' is taken as user" in found.describe()


def test_a_wrong_column_names_all_that_are_missing_and_the_separator(tmp_path):
  refused(tmp_path, {"interactions.csv": lines(header="a,b,timestamp")}, r"has no columns 'user' and 'item': its col")
  files = {"interactions.csv": lines(separator="#")}
  refused(tmp_path, files, r"has no columns 'user' and 'item' and 'timestamp'.*config.data.separator to what separates")
  assert read(tmp_path, files, separator="#")[1] == READ


def table(rows=ROWS, **types) -> pa.Table:
  names = ("user", "item", "timestamp")
  return pa.table({n: pa.array(column, types.get(n)) for n, column in zip(names, zip(*rows, strict=True), strict=True)})


@pytest.mark.parametrize(
  "names",
  [
    ("interactions.parquet/part-2.parquet", "interactions.parquet/part-10.parquet"),
    ("interactions/day=1/x.parquet", "interactions/day=2/a.parquet"),
    ("interactions-00000-of-00002.parquet", "interactions-00001-of-00002.parquet"),
  ],
)
def test_parts_are_one_table_in_their_order(tmp_path, names):
  files = {name: table(part) for name, part in zip(names, (ROWS[:5], ROWS[5:]), strict=True)}
  found, users = read(
    tmp_path, {**files, **({"interactions.parquet/_SUCCESS": ""} if "part" in names[0] else {})}, time_column=""
  )
  assert users == READ and "2 files" in found.describe()


def test_parts_of_text_and_parts_that_differ(tmp_path):
  files = {"interactions_1.csv": lines(ROWS[:5]), "interactions_2.csv.gz": lines(ROWS[5:])}
  assert read(tmp_path, files)[1] == READ
  other = {**files, "interactions_2.csv.gz": lines(ROWS[5:], header="user,item,when")}
  refused(tmp_path / "x", other, "interactions_2.csv.gz has the columns user, item, when, and .*of one table")


@pytest.mark.parametrize(
  ("name", "way"),
  [
    ("interactions_tomorrow.csv", "interactions_1.csv and interactions_2.csv"),
    ("interactions (1).csv.gz", "or move interactions \\(1\\).csv.gz away"),
    ("interactions copy.csv", "into one folder interactions"),
    ("interactions_2.CSV", "interactions_1.csv"),
    ("interactions_new.jsonl", "write them in one form"),
    ("items_tomorrow.csv", "only items.csv would be read.*items_1.csv and items_2.csv"),
  ],
)
def test_what_may_be_more_of_a_table_is_not_left_unread(tmp_path, name, way):
  files = {"interactions.csv": lines(ROWS), "items.csv": "item,title\ni1,One\n"}
  refused(tmp_path, {**files, name: lines(ROWS[5:])}, f"{re.escape(name)} beside .*{way}")
  alone = {"interactions/part-0.csv": lines(ROWS), "interactions_new.parquet/part-0.parquet": table(ROWS)}
  refused(tmp_path / "folder", alone, "holds interactions_new.parquet beside interactions, .*would be read")
  others = {"interactionsets.csv": "x", "interactions.md": "x", "items.index.json": "{}", "more_interactions.csv": "x"}
  assert read(tmp_path / "x", {**files, **others})[1] == READ


@pytest.mark.parametrize(
  ("one", "other"), [("interactions.csv", "interactions_2.csv"), ("interactions.parquet", "interactions_2.csv")]
)
def test_tomorrows_log_beside_todays_is_told_how_to_be_read(tmp_path, one, other):
  files = {one: table(ROWS[:5]) if "parquet" in one else lines(ROWS[:5]), other: lines(ROWS[5:])}
  refused(
    tmp_path, files, "are not read as one: .*call them interactions_1.* and interactions_2.*; or move one of them"
  )
  as_told = {"interactions_1.csv": lines(ROWS[:5]), "interactions_2.csv": lines(ROWS[5:])}
  assert read(tmp_path / "told", as_told, time_column="")[1] == READ


@pytest.mark.parametrize("settings", [{}, {"time_column": ""}])
def test_a_part_that_is_there_twice_is_refused(tmp_path, settings):
  text = lines(ROWS)
  packed = {"interactions_1.csv": text, "interactions_1.csv.gz": text}
  refused(tmp_path / "a", packed, "interactions_1.csv and interactions_1.csv.gz, the same name plain and", **settings)
  copied = {"interactions_1.csv": text, "interactions_2.csv.gz": text}
  refused(tmp_path / "b", copied, "interactions_1.csv and .*interactions_2.csv.gz have equal contents", **settings)
  nothing = {"interactions_1.csv": text, "interactions_2.csv": lines([]), "interactions_3.csv": lines([])}
  assert read(tmp_path / "c", nothing, **settings)[1] == READ


def test_parts_that_are_empty_or_lacking(tmp_path):
  files = {"interactions/part-0.csv": lines(ROWS[:5]), "interactions/part-1.csv": ""}
  files |= {"interactions/part-2.csv.gz": "", "interactions/part-3.csv": lines(ROWS[5:])}
  assert read(tmp_path, files)[1] == READ
  files = {"interactions-00000-of-00003.csv": lines(ROWS[:5]), "interactions-00002-of-00003.csv": lines(ROWS[5:])}
  refused(tmp_path / "x", files, "lacks 1 of the 3 files .* the first of them number 1")


DATED = [(u, i, f"2024-01-{9 - k % 4:02d}") for k, (u, i, _) in enumerate(ROWS)]  # the newest first


@pytest.mark.parametrize(
  ("times", "settings"),
  [([t for *_, t in DATED], {}), ([f"{9 - k % 4}/1/24" for k in range(12)], {"time_format": "%d/%m/%y"})],
)
@pytest.mark.parametrize("name", ["part-{}.csv", "part-{}.tsv.gz", "part-{}.parquet"])
def test_a_first_part_without_rows_says_nothing_about_times(tmp_path, name, times, settings):
  rows = [(u, i, t) for (u, i, _), t in zip(ROWS, times, strict=True)]
  files = {}
  for number, part in enumerate(([], [], rows[:8], rows[8:])):
    form = table([*part, *rows])[: len(part)] if "parquet" in name else lines(part, "\t" if "tsv" in name else ",")
    files[f"interactions/{name.format(number)}"] = form
  assert read(tmp_path, files, **settings)[1] == {u: READ[u][::-1] for u in READ}


@pytest.mark.parametrize("name", ["interactions.csv", "interactions.csv.gz", "interactions.parquet"])
@pytest.mark.parametrize(("gap", "row"), [(0, 1), (5, 6)])
@pytest.mark.parametrize("empty", ["", "  ", None])
def test_a_row_without_a_date_is_refused_as_that(tmp_path, name, gap, row, empty):
  rows = [(u, i, empty if k == gap else t) for k, (u, i, t) in enumerate(DATED)]
  text = lines([(u, i, "" if t is None else t) for u, i, t in rows])
  refused(tmp_path, {name: table(rows) if "parquet" in name else text}, f"{name} row {row} has no timestamp: give it")


@pytest.mark.parametrize("kinds", [(pa.int64(), pa.timestamp("s")), (pa.date32(), pa.int32())])
def test_parts_with_times_of_two_kinds(tmp_path, kinds):
  parts = zip((ROWS[:5], ROWS[5:]), kinds, strict=True)
  files = {f"interactions_{k}.parquet": table(part, timestamp=kind) for k, (part, kind) in enumerate(parts)}
  refused(tmp_path, files, "interactions_1.parquet has .* values in its column 'timestamp', but the files before it")


@pytest.mark.parametrize("value", [True, decimal.Decimal(5), datetime.time(10), datetime.timedelta(5), None])
@pytest.mark.parametrize("rows", [ROWS, DATED])
def test_a_later_part_whose_times_are_none_is_refused(tmp_path, value, rows):
  files = {"interactions_0.parquet": table(rows), "interactions_1.parquet": table([(u, i, value) for u, i, _ in ROWS])}
  refused(tmp_path, files, "interactions_1.parquet has .* values in its column 'timestamp', but the files before it")


UNITS = ("ms", "us", "ns")  # of Parquet


def dates(kind: str | None, days) -> pa.Array:
  """Days of January 2024: in a unit, "date" without a time of day, or None for text."""
  moments = pa.array([datetime.datetime(2024, 1, day) for day in days], pa.timestamp(kind if kind in UNITS else "us"))
  return moments if kind in UNITS else moments.cast(pa.date32() if kind else pa.string())


@pytest.mark.parametrize("kinds", [*itertools.product(UNITS, UNITS), ("date", "ns"), (None, "ns"), ("ns", None)])
@pytest.mark.parametrize("cut", ["2024-01-07", "a number"])
def test_parts_with_dates_in_two_units_are_in_one_order(tmp_path, kinds, cut):
  """The second part's days lie before, between and after those of the first; a number is in the finest unit."""
  files = {}
  for kind, days in zip(kinds, ((3, 5, 7), (1, 4, 8)), strict=True):
    columns = {"user": ["u"] * 3, "item": [f"{day}" for day in days], "timestamp": dates(kind, days)}
    files[f"interactions_{len(files)}.parquet"] = pa.table(columns)
  if cut == "a number":
    finest = max((kind if kind in UNITS else "us" for kind in kinds), key=UNITS.index)
    cut = str(dates(finest, [7]).cast(pa.int64())[0])
  found, users = read(tmp_path, files, split="time", time_cut=cut)
  assert users == {"u": ["1", "3", "4", "5", "7"]}
  assert "split at 2024-01-07 00:00:00 UTC" in found.describe() and "WARNING" not in found.describe()


@pytest.mark.parametrize("unit", UNITS)
def test_dates_keep_their_last_digit(tmp_path, unit):
  times = pa.array([1704067200 * 1000 ** (1 + UNITS.index(unit)) + k for k in (2, 0, 1)], pa.timestamp(unit))
  log = pa.table({"user": ["u"] * 3, "item": ["c", "a", "b"], "timestamp": times})
  assert read(tmp_path, {"interactions.parquet": log})[1] == {"u": ["a", "b", "c"]}


def test_a_date_that_the_finest_unit_cannot_hold_is_refused(tmp_path):
  far = pa.array([datetime.datetime(9999, 12, 31)] * 4, pa.timestamp("us"))
  files = {"interactions_1.parquet": table(timestamp=pa.timestamp("ns"))}
  files |= {"interactions_2.parquet": table(ROWS[:4]).set_column(2, "timestamp", far)}
  refused(tmp_path, files, r"interactions_2.parquet has a timestamp that does not fit into timestamp\[ns\], the finest")


def test_a_folder_beside_that_of_the_archive(tmp_path):
  assert read(tmp_path, {"shop/interactions.csv": lines(), "__MACOSX/shop/._interactions.csv": "x"})[1] == READ


@pytest.mark.parametrize("name", ["interactions.csv", "x.inter", "x.csv", "reviews_X_5.json", "meta_X.json"])
def test_what_is_not_a_file_is_not_opened(tmp_path, name):
  (tmp_path / "raw").mkdir()
  os.mkfifo(tmp_path / "raw" / name)  # to open it would wait for somebody who writes
  refused(tmp_path, {}, "holds nothing to prepare 'mine' from")


# Ids.


@pytest.mark.parametrize("value", [True, datetime.date(2024, 3, 1), datetime.time(10)])
def test_what_is_neither_text_nor_a_number_is_not_an_id(tmp_path, value):
  rows = [(value, i, t) for _, i, t in ROWS[:4]]
  refused(tmp_path, {"interactions.parquet": table(rows)}, "values in its column 'user': expected text or whole numb")
  if value is True:
    files = {"interactions.jsonl": jsonl({"user": u, "item": i, "timestamp": t} for u, i, t in rows)}
    refused(tmp_path / "j", files, "line 1 has the user True: expected one value, text or a number")
    files = {"interactions.csv": lines(), "items.jsonl": jsonl([{"item": True}])}
    refused(tmp_path / "i", files, "row 1 has a value of 'item' that cannot be an id .True is neither")


def test_ids_of_blanks_are_none(tmp_path):
  refused(tmp_path, {"interactions.csv": lines([*ROWS, ("  ", "i0", 9)])}, "has rows whose user is only blanks")
  refused(tmp_path / "x", {"interactions.csv": lines(), "items.csv": "item,title\n  ,x\n"}, "row 1 has no item")


def test_numbers_of_items_that_lost_digits_are_refused(tmp_path):
  files = {"interactions.csv": lines(), "items.parquet": pa.table({"item": [2.0**53 + 2, 3.0], "title": ["x", "y"]})}
  refused(tmp_path, files, "row 1 has a value of 'item' that cannot be an id .9007199254740994.0 is too large")


@pytest.mark.parametrize("columns", [{"user_column": "item"}, {"time_column": "user"}])
def test_one_column_is_not_two(tmp_path, columns):
  refused(tmp_path, {"interactions.csv": lines()}, "column '.*' is taken as user and as .*: set config.data", **columns)


@pytest.mark.parametrize("side", ["interactions", "items", "both"])
def test_whole_numbers_are_the_same_with_and_without_a_fraction(tmp_path, side):
  first, second = (".0" if side in ("interactions", "both") else ""), (".0" if side in ("items", "both") else "")
  rows = [(u, f"{242 + k}{first}", k) for u in range(3) for k in range(4)]
  items = "item,title\n" + "".join(f"{242 + k}{second},Film {k}\n" for k in range(4))
  found, users = read(tmp_path, {"interactions.csv": lines(rows), "items.csv": items})
  assert users == {str(u): ["242", "243", "244", "245"] for u in range(3)}
  assert [item.title for item in found.items] == [f"Film {k}" for k in range(4)]


def test_fractions_that_are_text_stay(tmp_path):
  rows = [("u", item, k) for k, item in enumerate(["1.0", "1.10", "v2.0"])]
  assert read(tmp_path, {"interactions.csv": lines(rows)})[1] == {"u": ["1.0", "1.10", "v2.0"]}


def test_numbers_of_all_kinds_as_ids(tmp_path):
  large = 2**63 + 5
  rows = [(large + u, float(k), k) for u in range(3) for k in range(4)]
  wanted = {str(large + u): ["0", "1", "2", "3"] for u in range(3)}
  whole = table(rows, user=pa.uint64(), timestamp=pa.uint64())
  assert read(tmp_path / "p", {"interactions.parquet": whole})[1] == wanted
  text = "".join(json.dumps({"user": u, "item": i, "timestamp": t}) + "\n" for u, i, t in rows)
  assert read(tmp_path / "j", {"interactions.jsonl": text})[1] == wanted
  mixed = text.replace('"item": 3.0', '"item": 3')
  assert read(tmp_path / "m", {"interactions.jsonl": mixed})[1] == wanted


def test_files_that_share_no_id_are_refused(tmp_path):
  files = {"interactions.csv": lines(), "items.csv": "item,title\nx,X\n"}
  refused(tmp_path, files, "None of the 4 items .* look like 'x', and here like 'i0'")


# Quotation marks.


UNCLOSED = {
  "in the last column": 'u0,i0,100,"bad\nu0,i1,101,ok\nu0,i2,102,ok\n',
  "closed by another one": 'u0,i0,100,"bad\nu0,i1,101,ok\nu0,i2,102,"fine"\nu0,i3,103,ok\n',
  "opened twice": 'u0,i0,100,"bad\nu0,i1,101,ok\nu0,i2,102,"worse\nu0,i3,103,ok\n',
  "closed where a value ends": 'u0,i0,100,"bad\nu0,i1,101,ok\nu0,i2,102,"\nu0,i3,103,ok\n',
  "after inches": 'u0,i9,99,5" pipe\nu0,i0,100,"bad\nu0,i1,101,ok\nu0,i2,102,"fine"\n',
}


@pytest.mark.parametrize("block", [16, 1 << 20])
@pytest.mark.parametrize("case", UNCLOSED)
def test_an_unclosed_quotation_mark_is_refused_with_its_line(tmp_path, monkeypatch, case, block):
  monkeypatch.setattr(csv_files, "_BLOCK", block)
  line = 3 if case == "after inches" else 2
  text = "user,item,timestamp,review\n" + UNCLOSED[case]
  refused(tmp_path, {"interactions.csv": text}, f"interactions.csv line {line} opens a quotation mark")


@pytest.mark.parametrize("block", [16, 40, 1 << 20])
@pytest.mark.parametrize(
  "review",
  [
    'a \\"word\\"',
    '"two\nlines, with a comma"',
    '"he said ""no"""',
    '5" pipe',
    '"a \\"word\\", quoted"',
    '""',
    '"1,2\n3,4"',
    "it's",
  ],
)
def test_quotation_marks_that_are_closed_lose_nothing(tmp_path, monkeypatch, review, block):
  monkeypatch.setattr(csv_files, "_BLOCK", block)
  text = lines([(u, review, f'"{i}"', t) for u, i, t in ROWS], header="user,review,item,timestamp")
  found, users = read(tmp_path, {"interactions.csv": text})
  assert users == READ and found.counts["interactions read"] == 12


def test_lines_of_a_description_are_not_taken_for_rows(tmp_path):
  items = 'item,title,description\ni0,Tea,"One, with, commas\nline two, with comma, again\nend"\ni1,Pot,y\n'
  found, _ = read(tmp_path, {"interactions.csv": lines(), "items.csv": items})
  assert found.items[0].extra["description"].count("\n") == 2 and found.items[1].title == "Pot"
  for rest in ('"Tea,x\ni1,Pot,y\ni2,Cup,z\n', '"Tea,x\ni1,Pot,y\ni2,"Cup",z\n', 'Tea,"x\ni1,Pot,y\ni2,Cup,"z"\n'):
    files = {"interactions.csv": lines(), "items.csv": f"item,title,brand\ni0,{rest}"}
    refused(tmp_path / f"{len(rest)}{rest[0]}", files, "items.csv line 2 opens a quotation mark")


@pytest.mark.parametrize("escaped", ['"Tea \\"green\\""', '"Tea ""green"""'])
def test_quotation_marks_inside_of_titles(tmp_path, escaped):
  items = f'item,title\ni0,{escaped}\ni1,"plain, with a comma"\n'
  found, _ = read(tmp_path, {"interactions.csv": lines(), "items.csv": items})
  assert [item.title for item in found.items[:2]] == ['Tea "green"', "plain, with a comma"]


@pytest.mark.parametrize("block", [16, 100, 1 << 20])
@pytest.mark.parametrize("separator", ["\t", "|", " "])
@pytest.mark.parametrize("last", ['"a_5"_nail"', '"a_5_nail'])
def test_marks_that_are_text_in_one_row_are_text_in_all(tmp_path, monkeypatch, separator, last, block):
  monkeypatch.setattr(csv_files, "_BLOCK", block)
  rows = [(f'"{u}"', f'"{i}"', t, '"fine"') for u, i, t in ROWS]
  rows[-1] = (*rows[-1][:3], last)
  text = lines(rows, separator, '"user","item","timestamp","title"')
  read_as = {f'"{u}"': [f'"{i}"' for i in items] for u, items in READ.items()}
  assert read(tmp_path, {"interactions.tsv": text})[1] == read_as
  assert read(tmp_path / "x", {"interactions.tsv": text.replace(last, '"a_5""_nail"')})[1] == READ


@pytest.mark.parametrize("block", [16, 1 << 20])
def test_a_backslash_means_the_same_in_all_rows(tmp_path, monkeypatch, block):
  """It ends the first title and escapes a mark in the last: no one way to read marks suits both, so they are text."""
  monkeypatch.setattr(csv_files, "_BLOCK", block)
  titles = ['"C:\\"', "Pot", "Cup", '"5\\" tea"']
  items = "item\ttitle\n" + "".join(f"i{k}\t{title}\n" for k, title in enumerate(titles))
  found, _ = read(tmp_path, {"interactions.csv": lines(), "items.tsv": items})
  assert [item.title for item in found.items] == titles


def test_a_value_that_ends_in_a_backslash(tmp_path):
  text = lines([(u, '"C:\\"', '"a\nb"', i, t) for u, i, t in ROWS], "\t", "user,path,review,item,timestamp")
  assert read(tmp_path, {"interactions.csv": text})[1] == READ


# Times.


@pytest.mark.parametrize(
  ("form", "settings"),
  [
    (lambda t: f"2019-10-01 00:{t - 90:02d}:00 UTC", {}),
    (lambda t: f" 2019-10-01 00:{t - 90:02d}:00 ", {}),
    (lambda t: f"2019-10-01T00:{t - 90:02d}:00.1234567+00:00", {}),
    (lambda t: f"{t}.0" if t % 2 else f" {t}", {}),
    (lambda t: f"{t - 90}/02/2020 10:00", {"time_format": "%d/%m/%Y %H:%M"}),
    (lambda t: f"02/{t - 90}/2020 10:00:00 PM", {"time_format": "%m/%d/%Y %I:%M:%S %p"}),
    (lambda t: f"2020-01-{t - 90} 10:00:00.250", {"time_format": "%Y-%m-%d %H:%M:%S.%f"}),
  ],
)
def test_times_as_people_write_them(tmp_path, form, settings):
  # In the file, the newest comes first: only the time can order them.
  rows = [(u, i, form(t)) for u, i, t in ROWS][::-1]
  assert read(tmp_path / "c", {"interactions.csv": lines(rows)}, **settings)[1] == {
    u: READ[u] for u in ("u2", "u1", "u0")
  }
  text = "".join(json.dumps({"user": u, "item": i, "timestamp": t}) + "\n" for u, i, t in rows)
  assert len(read(tmp_path / "j", {"interactions.jsonl": text}, **settings)[1]["u0"]) == 4
  assert read(tmp_path / "p", {"interactions.parquet": table(rows)}, **settings)[1]["u0"] == READ["u0"]


@pytest.mark.parametrize(
  "times",
  [
    ["1.66E+12"] * 12,
    [f"{1583020800000000000 + t}{'.0' * (t == 3)}" for t in range(12)],
    [str(10**20 + t) for t in range(12)],
    pa.array(np.arange(1583020800, 1583020812).astype(np.float32)),
  ],
)
def test_times_that_are_rounded_are_warned_about(tmp_path, times):
  rows = [(u, i, t) for (u, i, _), t in zip(ROWS, times, strict=True)]
  files: dict = {"interactions.csv": lines(rows)}
  if isinstance(times, pa.Array):
    files = {"interactions.parquet": table(rows, timestamp=times.type)}
  said = read(tmp_path, files)[0].describe()
  assert said.count("WARNING: ") == 1 and "has rounded times in its column 'timestamp'" in said
  full = lines([(u, i, f"{1583020800 + t:.18e}") for u, i, t in ROWS])
  assert "WARNING" not in read(tmp_path / "x", {"interactions.csv": full})[0].describe()


@pytest.mark.parametrize(("digits", "cut"), [("123456000", False), ("123456001", True), ("1234561", True)])
def test_dates_that_are_finer_than_microseconds_are_warned_about(tmp_path, digits, cut):
  rows = [(u, i, f"2024-01-01T00:00:{t - 90:02d}.{digits if t == 103 else '5'}Z") for u, i, t in ROWS]
  text = "".join(json.dumps({"user": u, "item": i, "timestamp": t}) + "\n" for u, i, t in rows)
  for name, content in (("csv", lines(rows)), ("parquet", table(rows)), ("jsonl", text)):
    said = read(tmp_path / name, {f"interactions.{name}": content})[0].describe()
    assert ("WARNING: " in said) == cut == (f"interactions.{name} has times with nanoseconds in its column" in said)


def test_names_of_zones_are_refused(tmp_path):
  rows = [(u, i, f"2020-02-{t - 90:02d} 10:00 %Z") for u, i, t in ROWS]
  files = {"interactions.csv": lines(rows)}
  refused(tmp_path / "x", files, "has %Z, but names of zones .*use %z", time_format="%Y-%m-%d %H:%M %Z")
  refused(tmp_path / "y", files, "has %Z", time_format="%Y-%m-%d %H:%M %%%Z")
  assert read(tmp_path, files, time_format="%Y-%m-%d %H:%M %%Z")[1] == READ


def test_a_time_of_another_form_is_refused_with_its_line(tmp_path):
  rows = [(u, i, f"0{t - 99}/02/2020") for u, i, t in ROWS]
  refused(tmp_path, {"interactions.csv": lines(rows)}, r"row 1 has the timestamp '01/02/2020'.*config.data.time_format")
  rows[7] = ("u1", "i3", "2020-02-05")
  refused(tmp_path, {"interactions.csv": lines(rows)}, "line 9 cannot be read .*'2020-02-05'", time_format="%d/%m/%Y")


def test_pairs_without_a_time_are_in_the_order_of_the_file(tmp_path):
  files = {"interactions.csv": lines([(u, i) for u, i, _ in ROWS[::-1]], header="user,item")}
  refused(tmp_path, files, "has no column 'timestamp'.*or to '' if the rows are in time order")
  assert read(tmp_path, files, time_column="")[1]["u0"] == ["i3", "i2", "i1", "i0"]


# Sessions.


@pytest.mark.parametrize("parquet", [False, True])
def test_sessions_with_their_events_inside(tmp_path, parquet):
  rows = [
    {"session": s, "events": [{"aid": k, "ts": 1661200010000 + 9 - k, "type": "clicks"} for k in range(4)]}
    for s in range(3)
  ]
  files = {"interactions.jsonl": "".join(json.dumps(row) + "\n" for row in rows)}
  if parquet:
    files = {"interactions.parquet": pa.Table.from_pylist(rows)}
  named = {"user_column": "session", "item_column": "aid", "time_column": "ts"}
  for place, settings in enumerate((named, {})):
    assert read(tmp_path / f"{place}", files, **settings)[1] == {str(s): ["3", "2", "1", "0"] for s in range(3)}


def jsonl(rows) -> str:
  return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_first_session_without_events_and_lists_of_other_things(tmp_path):
  events = [{"aid": f"i{k}", "ts": k} for k in range(4)]
  rows = [{"session": "u0", "events": []}, {"session": "u1", "events": None}, {"tags": [{"ts": 9}]}]
  rows += [{"session": u, "tags": [{"ts": 9}, {"ts": 8}], "events": events} for u in READ]
  assert read(tmp_path, {"interactions.jsonl": jsonl(rows[:2] + rows[3:])})[1] == READ
  rows = [{"user": u, "item": i, "pictures": [{"ts": 1}, {"ts": 2}]} for u, i, _ in ROWS]
  for name, form in (("interactions.jsonl", jsonl), ("interactions.parquet", pa.Table.from_pylist)):
    refused(tmp_path / name, {name: form(rows)}, "has no column 'timestamp'")


def test_a_column_that_the_first_row_lacks_is_one(tmp_path):
  rows = [{"user": u, "item": i, "timestamp": t} for u, i, t in ROWS]
  files = {"interactions.jsonl": jsonl([{"user": "u0", "item": "i9"}, *rows])}
  refused(tmp_path, files, "interactions.jsonl row 1 has no timestamp")


def test_types_of_newer_writers(tmp_path):
  plain = table([(u, i, f"2024-01-01T00:0{k % 4}") for k, (u, i, _) in enumerate(ROWS)])
  views = pa.table({name: plain[name].cast(pa.string_view()) for name in plain.column_names})
  assert read(tmp_path / "v", {"interactions.parquet": views})[1] == READ
  lists = pa.array([[f"i{k}" for k in range(4)]] * 3, pa.list_(pa.string(), 4))
  assert read(tmp_path / "l", {"interactions.parquet": pa.table({"user": list(READ), "items": lists})})[1] == READ


LISTS = [{"user_id": u, "items": [f"i{k}" for k in range(4)], "times": [9, 8, 7, 6]} for u in ("u0", "u1", "u2")]


@pytest.mark.parametrize("parquet", [False, True])
def test_users_with_a_list_of_ids_per_row(tmp_path, parquet):
  name = "interactions.parquet" if parquet else "interactions.jsonl"
  form = pa.Table.from_pylist if parquet else jsonl
  plain = [{"user_id": row["user_id"], "items": row["items"]} for row in LISTS]
  files = {name: form(plain), "items.csv": "item_id,title\ni1,One\n"}
  found, users = read(tmp_path / "plain", files)
  assert users == READ and found.items[1].title == "One"
  assert "no column holds times: the items in 'items' are taken in the order of their list" in found.describe()
  named = [{"user_id": row["user_id"], "bought": row["items"]} for row in LISTS]
  assert read(tmp_path / "named", {name: form(named)}, item_column="bought")[1] == READ
  timed = read(tmp_path / "timed", {name: form(LISTS)}, time_column="times")[1]
  assert timed == {user: items[::-1] for user, items in READ.items()}
  LISTS_TORN = [*LISTS, {**LISTS[0], "times": [1]}]
  refused(tmp_path / "torn", {name: form(LISTS_TORN)}, "lists of one length in 'items' and", time_column="times")


def test_lists_of_mixed_ids_and_lines_without_one(tmp_path):
  text = '{"user":1,"items":[]}\n{"user":2,"items":[1,"2",3]}\n{"user":3,"items":null}\n{"user":2,"items":[4]}\n'
  assert read(tmp_path / "a", {"interactions.jsonl": text})[1] == {"2": ["1", "2", "3", "4"]}
  text += '{"user":3,"items":5}\n'
  refused(tmp_path / "b", {"interactions.jsonl": text}, "line 5 does not hold lists of one length in 'items'")


@pytest.mark.parametrize("value", [{"$oid": "u"}, ["u"]])
def test_what_is_no_single_value_is_not_an_id(tmp_path, value):
  rows = [{"user": "u", "item": f"i{k}", "timestamp": k} for k in range(4)]
  refused(
    tmp_path, {"interactions.jsonl": jsonl([*rows, {**rows[0], "user": value}])}, "line 5 has the user .*one value"
  )


# Names of columns.


@pytest.mark.parametrize(
  "header", ["User,Item,Timestamp", "USER_ID,ITEM_ID,TIMESTAMP", "userID,productID,Time", "visitorid,itemid,event_time"]
)
def test_names_are_known_in_any_spelling_and_said(tmp_path, header):
  found, users = read(tmp_path, {"interactions.csv": lines(header=header)})
  assert users == READ and all(f"column {name!r} is taken as " in found.describe() for name in header.split(","))


def test_what_else_a_column_could_have_been_is_said(tmp_path):
  files = {"interactions.csv": lines([(*row, "x") for row in ROWS], header="user_id,item,timestamp,session")}
  assert "column 'user_id' is taken as user, not 'session'" in read(tmp_path, files)[0].describe()


def test_an_items_file_may_call_its_ids_id(tmp_path):
  files = {"interactions.csv": lines(header="user_id,item_id,timestamp"), "items.csv": "ID,title\ni1,One\n"}
  assert read(tmp_path / "a", files)[0].items[1].title == "One"
  refused(tmp_path / "b", {"interactions.csv": lines(header="user_id,id,timestamp")}, "has no column 'item'")


# Files of another form than their name says.


def parquet_bytes() -> bytes:
  buffer = pa.BufferOutputStream()
  pa.parquet.write_table(table(), buffer)
  return buffer.getvalue().to_pybytes()


@pytest.mark.parametrize(
  ("name", "content", "sentence"),
  [
    ("interactions.csv", parquet_bytes, "is a Parquet file: name it .parquet"),
    ("interactions.jsonl", parquet_bytes, "is a Parquet file: name it .parquet"),
    ("interactions.csv", lambda: gzip.compress(b"x"), "is a gzip file: its name must end with .gz"),
    ("interactions.csv.gz", lambda: gzip.compress(b"x"), "is a gzip file inside a gzip file: unpack it once"),
    ("interactions.csv", lambda: b"PK\x03\x04...", "is a zip archive .as Excel files are.: unpack it, or save"),
    ("interactions.csv", lambda: lines().encode("utf-16-le"), "is not UTF-8 text .its first line has NUL bytes"),
    ("interactions.csv", lambda: lines().replace("\n", "\r"), "ends its lines by CR alone"),
    ("interactions.json", lambda: json.dumps([{"user": "u", "item": "i"}], indent=1), "is one JSON array: write one"),
    ("interactions.json", lambda: json.dumps([{"user": "u", "item": "i"}]), "is one JSON array: write one"),
    (
      "interactions.jsonl",
      lambda: '["i0", "i1"]\n["i2"]\n',
      "line 1 cannot be read .a list.: expected one JSON object",
    ),
    ("INTERACTIONS.CSV", lines, "if INTERACTIONS.CSV holds them, call it interactions.csv"),
    ("mine.csv.gz", lines, "if mine.csv.gz holds them, call it interactions.csv.gz"),
  ],
)
def test_files_of_another_form_say_which(tmp_path, name, content, sentence):
  refused(tmp_path, {name: content()}, sentence)


def test_a_value_more_than_names_is_refused_as_what_it_is(tmp_path):
  names = "".join(f'"{k}" "{u}" "{i}" {t}\n' for k, (u, i, t) in enumerate(ROWS))
  refused(tmp_path / "r", {"interactions.txt": '"user" "item" "timestamp"\n' + names}, "3 column names, but 4 values")
  ended = lines().replace("\n", ",\n").replace("timestamp,\n", "timestamp\n", 1)
  refused(tmp_path / "e", {"interactions.csv": ended}, "3 column names, but 4 values in each row")


def test_a_part_without_rows_says_nothing_about_types(tmp_path):
  empty = pa.table({name: pa.array([], pa.null()) for name in ("user", "item", "timestamp")})
  files = {"interactions.parquet/part-0.parquet": empty, "interactions.parquet/part-1.parquet": table()}
  assert read(tmp_path, files)[1] == READ


def test_ids_of_a_type_that_rounds_them_are_refused(tmp_path):
  rows = [(float(2**24 + 2 * u), i, t) for u in range(3) for _, i, t in ROWS[:4]]
  refused(tmp_path / "a", {"interactions.parquet": table(rows, user=pa.float32())}, "too large for that type")
  assert len(read(tmp_path / "b", {"interactions.parquet": table(rows, user=pa.float64())})[1]) == 3


@pytest.mark.parametrize("time", ["inf", "NaN", "-inf"])
def test_a_time_that_is_not_finite_is_none(tmp_path, time):
  rows = [*ROWS[:3], ("u0", "i3", time)]
  refused(tmp_path, {"interactions.csv": lines(rows)}, "row 4 has no timestamp")


# What is doubtful is said.


@pytest.mark.parametrize(
  ("rows", "said"),
  [
    ([(f"1.5000{u}e+10", i, t) for u in range(3) for _, i, t in ROWS[:4]], "user ids like '1.50000e+10' are rounded"),
    ([(u, i, 1661200010000 + t if t % 2 else 1661200010 + t) for u, i, t in ROWS], "in milliseconds and others in sec"),
  ],
)
def test_ids_and_times_that_were_spoilt_before_are_warned_about(tmp_path, rows, said):
  found = read(tmp_path / "a", {"interactions.csv": lines(rows)})[0].describe()
  assert found.count("WARNING: ") == 1 and said in found
  assert "WARNING" not in read(tmp_path / "b", {"interactions.csv": lines()})[0].describe()


@pytest.mark.parametrize(("name", "rows"), [("NA", 30), ("null", 25), ("0", 40), ("bot", 200)])
def test_a_user_with_an_unlikely_share_is_named(tmp_path, name, rows):
  many = ROWS + [(name, f"i{k % 4}", 900 + k) for k in range(rows)]
  found, _ = read(tmp_path, {"interactions.csv": lines(many)})
  said = found.describe()
  assert f"the longest history, of user {name!r}, has {rows} items" in said and f"{12 + rows} interactions read" in said
  assert f"WARNING: user {name!r} has {rows} of the {12 + rows} interactions" in said


def test_usual_users_are_not_doubted(tmp_path):
  rows = [(u, f"i{k % 7}", k) for u in range(12) for k in range(10 + 3 * u)]
  found, _ = read(tmp_path, {"interactions.csv": lines(rows)})
  assert "WARNING" not in found.describe() and "the longest history, of user '11', has 43 items" in found.describe()


# The table of items.


def test_the_first_of_an_items_rows_is_kept(tmp_path):
  items = "".join(json.dumps({"item": i, "title": t}) + "\n" for i, t in [("i0", "A"), ("i1", "B"), ("i0", "C")])
  found, _ = read(tmp_path, {"interactions.csv": lines(), "items.jsonl": items})
  assert found.items[0].title == "A"
  assert found.counts["rows of the items file with the id of an earlier row left out"] == 1


def test_items_without_interactions_are_kept_on_request(tmp_path):
  items = "item,title\n" + "".join(f"i{k},Tea {k}\n" for k in range(6))
  files = {"interactions.csv": lines(), "items.csv": items}
  assert read(tmp_path / "a", files)[0].num_items == 4
  found, users = read(tmp_path / "b", files, keep_all_items=True)
  assert users == READ and [item.item_id for item in found.items] == [f"i{k}" for k in range(6)]
  assert found.items[5].title == "Tea 5" and found.counts["items without interactions kept (cold items)"] == 2


def test_any_column_may_be_named_in_the_template(tmp_path):
  items = "item,title,description,price,colour\ni0,Tea,Fresh,4.5,green\n"
  config = whole(tmp_path, text_template="{title}: {description}; {colour}; {price}")
  root = write(tmp_path, {"interactions.csv": lines(), "items.csv": items})
  with pytest.raises(InputError, match=r"unknown field \{colour\}.*config.data.extra_columns"):
    prepare_all(config, str(root))
  config = dataclasses.replace(config, data=dataclasses.replace(config.data, extra_columns=("colour",)))
  run = prepare_all(config, str(root))
  assert dict(run.dataset.items[0].extra) == {"description": "Fresh", "price": "4.5", "colour": "green"}
  from rastp_jax.semantic_ids import embeddings

  assert embeddings.item_text(run.dataset.items[0], config.semantic_ids.text_template) == "Tea: Fresh; green; 4.5"
  assert embeddings.item_text(run.dataset.items[1], config.semantic_ids.text_template) == ""


@pytest.mark.parametrize("header", ["ITEM,Title,Brand,Category", "item_id,product_name,Manufacturer,genres"])
def test_text_columns_are_known_in_any_spelling_and_said(tmp_path, header):
  files = {"interactions.csv": lines(), "items.csv": f"{header}\ni0,Tea,Nambu,Kitchen\n"}
  found, _ = read(tmp_path / "a", files)
  item = found.items[0]
  assert (item.title, item.brand, item.categories) == ("Tea", "Nambu", ("Kitchen",))
  assert f"column {header.split(',')[1]!r} is taken as title" in found.describe()
  found, _ = read(tmp_path / "b", files, title_column="titel", extra_columns=("colour",))
  assert found.items[0].title == "" and found.describe().count("WARNING: items.csv has no column ") == 2


# Which row is which item.


def whole(tmp_path, **semantic_ids) -> Config:
  settings = SemanticIdsConfig(**{"levels": 2, "codebook_size": 8, "text_dims": 8, **semantic_ids})
  return Config(data=data_config(tmp_path), semantic_ids=settings)


def shop(tmp_path) -> tuple[pathlib.Path, np.ndarray, list[str]]:
  """40 items in two categories, named by the interactions in another order than by the items file."""
  names = [f"i{k:02d}" for k in range(40)]
  rng = np.random.default_rng(0)
  order = [rng.permutation(np.arange(u % 5, 40, 5)) for u in range(60)]
  rows = [(f"u{u}", names[k], t) for u, some in enumerate(order) for t, k in enumerate(some)]
  items = "item,title,categories\n" + "".join(
    f"{n},thing {k},{'tea' if k < 20 else 'ink'}\n" for k, n in enumerate(names)
  )
  vectors = np.where(np.arange(40)[:, None] < 20, 1.0, -1.0) * np.ones((1, 8)) + 0.1 * rng.normal(size=(40, 8))
  return write(tmp_path, {"interactions.csv": lines(rows), "items.csv": items}), vectors.astype(np.float32), names


def test_rows_of_vectors_follow_the_items_file(tmp_path):
  root, vectors, names = shop(tmp_path)
  np.save(tmp_path / "rows.npy", vectors)
  np.savez(tmp_path / "rows.npz", embeddings=vectors)
  back = np.arange(40)[::-1]
  np.savez(tmp_path / "ids.npz", embeddings=np.concatenate([vectors, vectors])[:45], ids=[*names, *"abcde"])
  np.savez(tmp_path / "back.npz", embeddings=vectors[back], ids=np.array(names)[back])
  made, said = {}, {}
  for name in ("rows.npy", "rows.npz", "ids.npz", "back.npz"):
    config = whole(tmp_path, embeddings=str(tmp_path / name), collaborative_weight=0.3)
    data = dataclasses.replace(config.data, data_dir=str(tmp_path / name.replace(".", "_")))
    run = prepare_all(dataclasses.replace(config, data=data), str(root))
    made[name], said[name] = run.semantic_ids.fingerprint, run.describe()
    assert not [line for line in run.codes.metrics["advice"] if "ALONE" in line]
  assert len(set(made.values())) == 1
  assert "rows of rows.npy are taken by the order of the items file" in said["rows.npy"]
  assert "taken by item id; 5 that are not items of this dataset are left out" in said["ids.npz"]
  assert prepare_all(dataclasses.replace(config, data=data)).codes.reused  # without the raw files


def test_rows_in_a_wrong_order_are_told_although_histories_are_joined(tmp_path):
  root, vectors, names = shop(tmp_path)
  np.savez(tmp_path / "e.npz", embeddings=vectors, ids=np.random.default_rng(5).permutation(names))
  run = prepare_all(whole(tmp_path, embeddings=str(tmp_path / "e.npz"), collaborative_weight=0.5), str(root))
  assert "The embeddings ALONE say almost nothing" in run.describe()


def test_rows_without_a_known_order_are_refused(tmp_path):
  root, vectors, names = shop(tmp_path)
  np.save(tmp_path / "rows.npy", vectors)
  np.save(tmp_path / "short.npy", vectors[:-1])
  np.save(tmp_path / "codes.npy", np.stack(np.divmod(np.arange(40), 8), 1))
  with pytest.raises(InputError, match="short.npy has 39 rows, expected 40, one per row of the items file"):
    prepare_all(whole(tmp_path, embeddings=str(tmp_path / "short.npy")), str(root))
  (root / "items.csv").unlink()
  other = tmp_path / "other"
  with pytest.raises(InputError, match="rows.npy does not say which row is which item.*give an .npz with .* as ids"):
    prepare_all(whole(other, embeddings=str(tmp_path / "rows.npy")), str(root))
  with pytest.raises(InputError, match=r"codes.npy does not say which row is which item.*give index.json"):
    prepare_all(whole(other), str(root), str(tmp_path / "codes.npy"))


def index_of(keys, table) -> str:
  return json.dumps({key: [f"<a_{a}>", f"<b_{b}>"] for key, (a, b) in zip(keys, table.tolist(), strict=True)})


@pytest.mark.parametrize(
  ("arrays", "sentence"),
  [
    ({"ids": np.array([], str)}, "has no row for|expected one id per row"),
    ({"ids": np.array([True] * 40)}, "has an id that cannot be one .True is neither"),
    ({"ids": 2.0**53 + np.arange(40)}, "is too large for its type to hold all digits"),
    ({"item_ids": np.arange(40)}, "has an array 'item_ids', but none named ids"),
  ],
)
def test_ids_of_vectors_that_are_none(tmp_path, arrays, sentence):
  _, vectors, names = shop(tmp_path)
  vectors = vectors[:0] if not len(next(iter(arrays.values()))) else vectors
  np.savez(tmp_path / "e.npz", embeddings=vectors, **arrays)
  with pytest.raises(InputError, match=sentence):
    vectors_lib.load_embeddings(tmp_path / "e.npz", 40, names)
  np.savez(tmp_path / "b.npz", embeddings=shop(tmp_path)[1][::-1], ids=np.array(names[::-1], bytes))
  np.testing.assert_array_equal(vectors_lib.load_embeddings(tmp_path / "b.npz", 40, names), shop(tmp_path)[1])


@pytest.mark.parametrize("kind", ["ids", "more ids", "rows", "npy"])
def test_codes_are_matched_by_name_or_by_rows_where_that_is_evident(tmp_path, kind):
  root, _, names = shop(tmp_path)
  table = np.stack(np.divmod(np.arange(40), 8), 1)
  file = tmp_path / ("codes.npy" if kind == "npy" else "index.json")
  if kind == "npy":
    np.save(file, table)
  else:
    keys = {"ids": names, "more ids": [*names, "x", "y"], "rows": list(map(str, range(40)))}[kind]
    file.write_text("\ufeff" + index_of(keys, np.concatenate([table, table[:2]])[: len(keys)]))
  run = prepare_all(whole(tmp_path), str(root), str(file))
  by_name = dict(zip(run.dataset.item_ids, run.semantic_ids.codes.tolist(), strict=True))
  assert by_name == dict(zip(names, table.tolist(), strict=True))
  said = {
    "ids": "",
    "more ids": "are taken by item id; 2 that are not items of this dataset are left out",
    "rows": "are taken by row: its keys are exactly 0 to 39, the rows of the items file counted from 0",
    "npy": "codes of codes.npy are taken by the order of the items file",
  }
  assert said[kind] in run.describe()


# No text.


@pytest.mark.parametrize(
  "settings", [{}, {"method": "random"}, {"collaborative_weight": 1.0}, {"embeddings": "tfidf_svd", "method": "random"}]
)
def test_a_dataset_without_text_gets_codes(tmp_path, settings):
  root, _, _ = shop(tmp_path)
  (root / "items.csv").unlink()
  config = whole(tmp_path, **settings)
  run = prepare_all(config, str(root))
  assert ("no item has a text: codes are made from what users take together" in run.describe()) == (
    settings.get("method") != "random"
  )
  again = prepare_all(config)
  assert again.codes.reused and again.semantic_ids.fingerprint == run.semantic_ids.fingerprint
  if not settings:
    alone = whole(tmp_path / "x", collaborative_weight=1.0)
    assert prepare_all(alone, str(root)).semantic_ids.fingerprint == run.semantic_ids.fingerprint
    assert run.codes.metrics["shared_prefix"]["ratio"] > 1.5


# Published sets.


def test_movielens(tmp_path):
  ratings = [(u, m, 3, 881250949 + 10 * u + m) for u in (1, 2, 3) for m in (11, 12, 13, 14)]
  wanted = {str(u): ["11", "12", "13", "14"] for u in (1, 2, 3)}
  flags = "|".join("1" if k in (3, 5) else "0" for k in range(19))
  film = f'11|Amélie, "the" film (2001)|01-Jan-1995||http://x|{flags}\n'.encode("latin-1")
  k100 = {"ml-100k/u.data": lines(ratings, "\t", ""), "ml-100k/u.item": film}
  m1 = {
    "ratings.dat": lines(ratings, "::", ""),
    "movies.dat": '11::Amélie, "the" film (2001)::Animation|Comedy\n'.encode("latin-1"),
  }
  m20 = {
    "ratings.csv": lines(ratings, ",", "userId,movieId,rating,timestamp"),
    "movies.csv": 'movieId,title,genres\n11,"Amélie, ""the"" film (2001)",Animation|Comedy\n'
    "12,Other,(no genres listed)\n",
  }
  for place, files in enumerate((k100, m1, m20)):
    found, users = read(tmp_path / f"{place}", files)
    assert users == wanted, place
    assert found.items[0].title == 'Amélie, "the" film (2001)' and found.items[0].categories == ("Animation", "Comedy")


def test_amazon_2018(tmp_path):
  reviews = [{"reviewerID": u, "asin": i, "unixReviewTime": t, "overall": 5.0} for u, i, t in ROWS]
  meta = {
    "asin": "i0",
    "title": "Tea &amp; pot",
    "brand": "Nambu",
    "category": ["Kitchen", "Tea"],
    "description": ["Fresh.", "Green."],
    "feature": ["50 bags"],
    "price": "$4.50",
  }
  files = {
    "Tea_5.json.gz": "".join(json.dumps(row) + "\n" for row in reviews),
    "meta_Tea.json.gz": json.dumps(meta) + "\n",
  }
  found, users = read(tmp_path, files)
  item = found.items[0]
  assert users == READ and (item.title, item.brand, item.categories) == ("Tea & pot", "Nambu", ("Kitchen > Tea",))
  assert dict(item.extra) == {"description": "Fresh. Green.", "features": "50 bags", "price": "$4.50"}


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("described", [True, False])
def test_amazon_2023(tmp_path, kind, described):
  rows = [
    {
      "rating": 5.0,
      "title": "x",
      "images": [],
      "asin": f"v{i}",
      "parent_asin": i,
      "user_id": u,
      "timestamp": 10**12 + t,
    }
    for u, i, t in ROWS
  ]
  meta = [
    {"main_category": "All Beauty", "title": "Tea", "features": ["50 bags"], "description": [], "price": 4.0,
     "store": "N", "categories": ["Kitchen", "Tea"], "details": {"a": 1}, "parent_asin": "i0"},
    {"main_category": "All Beauty", "title": None, "features": [], "description": ["d"], "price": None, "store": None,
     "categories": [], "details": {}, "parent_asin": "i1"},
  ]  # fmt: skip
  text = "".join(json.dumps(row) + "\n" for row in rows)
  if kind == "csv":
    text = lines([(u, i, 5.0, 10**12 + t) for u, i, t in ROWS], header="user_id,parent_asin,rating,timestamp")
  files = {f"All_Beauty.{kind}.gz": text}
  if described:
    files["meta_All_Beauty.jsonl"] = "".join(json.dumps(row) + "\n" for row in meta)
  found, users = read(tmp_path, files)
  assert users == READ
  if described:
    one, two, *_ = found.items
    assert (one.title, one.brand, one.categories) == ("Tea", "N", ("Kitchen > Tea",))
    assert dict(one.extra) == {"features": "50 bags", "price": "4"} and dict(two.extra) == {"description": "d"}
    assert two.title == "" and two.categories == ("All Beauty",)


# What is held out.


def test_consecutive_repeats_are_dropped_on_request(tmp_path):
  items = ["a", "a", "b", "b", "b", "a", "c"]
  files = {"interactions.csv": lines([("u", item, t) for t, item in enumerate(items)])}
  assert read(tmp_path / "a", files)[1] == {"u": items}
  found, users = read(tmp_path / "b", files, repeats="consecutive")
  assert users == {"u": ["a", "b", "a", "c"]}
  assert found.counts["consecutive interactions with the same item left out"] == 3


LOG = [
  *[("early", f"i{k}", 10 + k) for k in range(4)],  # nothing after the cut: for training
  *[("both", f"i{k}", 17 + k) for k in range(6)],  # 17, 18, 19 | 20, 21, 22
  *[("late", f"i{k}", 30 + k) for k in range(4)],  # nothing before it: left out
  *[("cold", item, t) for item, t in (("i0", 11), ("i1", 12), ("new", 25))],
]


@pytest.mark.parametrize("cut", ["20", "0.47", "1970-01-01T00:00:20"])
def test_a_split_by_time(tmp_path, cut):
  found, users = read(tmp_path, {"interactions.csv": lines(LOG)}, split="time", time_cut=cut)
  assert list(users) == ["both", "cold", "early"] and users["both"] == ["i0", "i1", "i2", "i3"]
  data = histories.read(found)
  assert data.num_users == 2 and list(data.user_ids) == ["both", "cold"]
  names = np.array(found.item_ids)
  _, ends = data.spans("test")
  assert names[data.items[ends - 1]].tolist() == ["i3", "new"]
  _, ends = data.spans("validation")
  assert names[data.items[ends - 1]].tolist() == ["i2", "i1"]
  regions = [names[data.items[a:b]].tolist() for a, b in zip(*data.training_spans(), strict=True)]
  assert regions == [["i0", "i1"], ["i0"], ["i0", "i1", "i2", "i3"]]
  assert found.counts["test targets that training never sees (cold items)"] == 1
  with pytest.raises(
    InputError, match="prepared with data.split='time', but now data.split='leave_one_out' is asked for"
  ):
    detect.prepare_dataset(data_config(tmp_path))


def test_nothing_is_held_out_on_request(tmp_path):
  found, _ = read(tmp_path, {"interactions.csv": lines()}, hold_out=0)
  data = histories.read(found)
  first, stop = data.training_spans()
  assert (stop - first).tolist() == [4, 4, 4] and data.num_users == 0
  for split in ("validation", "test"):
    with pytest.raises(InputError, match=r"holds nothing out \(data.hold_out=0\)"):
      data.spans(split)
  assert found.fingerprint != read(tmp_path / "x", {"interactions.csv": lines()})[0].fingerprint


@pytest.mark.parametrize(
  ("settings", "sentence"),
  [
    ({"hold_out": 1}, "data.hold_out=1"),
    ({"item_column": ""}, "config.data.item_column='' names no column"),
    ({"time_cut": "soon"}, "data.time_cut='soon' is not a moment"),
    ({"split": "random"}, "data.split='random' is not known"),
  ],
)
def test_splits_that_make_no_sense(settings, sentence):
  with pytest.raises(InputError, match=sentence):
    config_lib.from_dict({"data": settings})


def test_a_split_by_time_needs_times_and_somebody_to_evaluate(tmp_path):
  refused(
    tmp_path, {"interactions.csv": lines()}, "has no user with two interactions before", split="time", time_cut="1"
  )
  files = {"sequences.txt": "1 1 2 3\n", "items.jsonl": "".join(f'{{"item_id": {k}}}\n' for k in (1, 2, 3))}
  refused(tmp_path / "x", files, "has no times, which data.split='time' needs", split="time")


def test_younger_settings_at_their_defaults_change_no_fingerprint(tmp_path):
  found, _ = read(tmp_path, {"interactions.csv": lines()})
  assert set(found.settings) == {
    "user_column", "item_column", "time_column", "title_column", "brand_column", "categories_column", "k_core",
    "min_length", "repeats",
  }  # fmt: skip


def test_who_prepares_other_files_is_told_what_else_would_go(tmp_path):
  config = Config(data=data_config(tmp_path), semantic_ids=SemanticIdsConfig(levels=1, codebook_size=2))
  prepare_all(config, str(write(tmp_path, {"interactions.csv": lines()})))
  write(tmp_path, {"interactions.csv": lines(ROWS[:-1])})
  for changed in (config.data, dataclasses.replace(config.data, repeats="first")):
    with pytest.raises(
      InputError,
      match=r"choose another config.data.dataset or .*; or remove it and .*/review_items/mi"
      r"ne/1.0.0 and its semantic IDs .*/semantic_ids/mine.npz, after which runs trained on it can no longer be used",
    ):
      detect.prepare_dataset(changed, str(tmp_path / "raw"))


def test_a_dataset_that_cannot_be_trained_on_is_told(tmp_path):
  short, long = [[(u, i, t) for u, i, t in ROWS if i <= last] for last in ("i2", "i3")]
  said = read(tmp_path / "short", {"interactions.csv": lines(short)})[0].describe()
  assert "WARNING: no user has the 4 items that training needs (2 are held out)" in said
  for name, rows, settings in (("long", long, {}), ("all", short, {"hold_out": 0})):
    assert "WARNING" not in read(tmp_path / name, {"interactions.csv": lines(rows)}, **settings)[0].describe()


def test_other_files_beside_the_interactions_do_no_harm(tmp_path):
  files = {"interactions.csv": lines(), "notes.csv": b"benutz\xfcr\n", "more.jsonl.gz": gzip.compress(b"x")[:-3]}
  assert read(tmp_path, files)[1] == READ
