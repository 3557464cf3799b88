"""Prepares a dataset: checks a source's rows and writes them as the tables that `prepared.Prepared` reads."""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rastp_jax.data import datasets, tfds_tables
from rastp_jax.data.items import Item
from rastp_jax.data.prepared import Prepared, check_settings, find_prepared, open_prepared
from rastp_jax.data.sources.source import Source
from rastp_jax.data.splits import LEAVE_ONE_OUT, MIN_ITEMS, Rows, Split
from rastp_jax.data.tfds_tables import ReviewHistories, ReviewItems
from rastp_jax.errors import InputError
from rastp_jax.runtime import buckets, files, terminal


def prepare(
  data_dir: str,
  dataset: str,
  source: Source,
  split: Split = LEAVE_ONE_OUT,
  beam_options: Sequence[str] | None = None,
) -> Prepared:
  """Writes a source's rows as the two tables, or finds them written already.

  Everything is read and checked before anything is written, and both tables are written aside and moved to their place
  at the end, so that an interrupted run leaves nothing that would stop the next.

  Args:
    data_dir: where to.
    dataset: its name.
    source: of the rows.
    split: which of them are held out.
    beam_options: of an Apache Beam pipeline whose workers write the histories, the same rows to the same files; they
      must see data_dir. None: this process writes them.

  Raises:
    InputError: the source is damaged, its sizes are not the published ones, the data directory already holds this
      dataset from another source or with other settings, or cannot be written.
  """
  found = find_prepared(data_dir, dataset)
  if found is not None:
    check_settings(found, {**source.settings, **split.settings})
  fingerprint = split.fingerprint(source.fingerprint())
  if found is not None:
    if found.fingerprint != fingerprint:
      raise InputError(f"{found.histories_dir} was prepared from other files than {source.where}: {found.way_out()}.")
    return found
  pipeline = {} if beam_options is None else beam_pipeline(beam_options)
  if pipeline and buckets.is_url(str(data_dir)):
    raise InputError(f"{data_dir} cannot be used with --beam_options: its workers need a directory that they share.")
  raw = source.read()
  lengths = np.diff(raw.offsets)
  short = lengths < MIN_ITEMS
  sizes = {
    "users": len(lengths) - int(short.sum()),
    "items": raw.num_items,
    "interactions": len(raw.items) - int(lengths[short].sum()),
  }
  _check_sizes(dataset, source.where, sizes, int(short.sum()))
  rows = split.apply(raw, source.where)
  kept = np.diff(rows.offsets)
  longest = int(kept.argmax())
  trained = kept - np.where(np.arange(len(kept)) < rows.evaluated, 2, 0)
  too_short = (
    "WARNING: no user has the 4 items that training needs (2 are held out), and `train` will refuse this: give longer "
    "histories"
  )
  facts = {
    "fingerprint": fingerprint,
    "num_users": len(rows.user_ids),
    "num_items": raw.num_items,
    "num_interactions": len(rows.items),
    "dropped_users": int(short.sum()),
    "settings": {**source.settings, **split.settings},
    "counts": {**raw.counts, **rows.counts},
    "notes": [*raw.notes, *rows.notes, *([too_short] if trained.max() < 2 else [])],
    "longest": [rows.user_ids[longest].as_py(), int(rows.offsets[longest + 1] - rows.offsets[longest])],
    "evaluated": None if rows.evaluated == len(rows.user_ids) else rows.evaluated,
    "items_file_rows": None if raw.file_rows is None else raw.num_file_rows,
  }
  try:
    with files.scratch_directory(files.below(data_dir, f".preparing_{dataset}").absolute()) as aside:
      catalogue = enumerate(_item_rows(raw.catalogue, raw.file_rows))
      shards = [lambda: itertools.islice(catalogue, tfds_tables.SHARD_ROWS)] * -(
        -raw.num_items // tfds_tables.SHARD_ROWS
      )
      items = tfds_tables.write(ReviewItems(config=dataset, data_dir=aside, shards=shards, facts=facts), aside)
      with terminal.bar(len(rows.user_ids), "Writing histories", " users") as bar:
        if not pipeline:
          read, tell = lambda: rows, bar.update
        else:  # workers get a path, not the rows: these may be larger than a pipeline can be
          _save(aside, rows)
          read, tell = functools.partial(_open_saved, aside), None
        firsts = range(0, len(rows.user_ids), tfds_tables.SHARD_ROWS)
        shards = [functools.partial(_history_rows, read, first, tell) for first in firsts]
        histories = tfds_tables.write(
          ReviewHistories(config=dataset, data_dir=aside, shards=shards, facts=facts), aside, pipeline
        )
      tfds_tables.write_arrays(histories, rows.items, rows.offsets)
      written = [items, histories]
      for directory in written:
        place = files.below(data_dir, *directory.relative_to(aside).parts)
        if place.exists():  # a run was killed between the two moves: one table is of no use without the other
          shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(place)
        buckets.upload(place)
  except (OSError, RuntimeError) as error:  # array_record raises RuntimeError where the disk is full
    raise InputError(
      f"Dataset {dataset!r} cannot be written to {data_dir} ({error}): make room, or choose another directory with "
      "config.data.data_dir."
    ) from error
  return dataclasses.replace(open_prepared(data_dir, dataset), reused=False)


def _check_sizes(dataset: str, where: str, sizes: Mapping[str, int], dropped_users: int) -> None:
  if not sizes["users"]:
    raise InputError(f"{where} holds no user with at least {MIN_ITEMS} items: there is nothing to train on.")
  published = datasets.named(dataset)
  for name, got in sizes.items():
    expected = getattr(published, name)
    if expected is not None and got != expected:
      raise InputError(
        f"{where} has {got} {name} ({dropped_users} users with fewer than {MIN_ITEMS} items left out), "
        f"expected the {expected} published for {dataset!r}: a file is incomplete or of another dataset; get it again "
        "or change config.data.dataset."
      )


def _item_rows(catalogue: Iterable[Item], file_rows: np.ndarray | None) -> Iterator[dict[str, Any]]:
  for row, item in enumerate(catalogue):
    extra = json.dumps(dict(item.extra), ensure_ascii=False) if item.extra else ""
    yield {**dataclasses.asdict(item), "extra": extra, "file_row": -1 if file_rows is None else int(file_rows[row])}


def _history_rows(
  read: Callable[[], Rows], first: int, tell: Callable[[int], Any] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
  """A shard of histories: users from `first` on. `tell` is told how many more are done."""
  rows = read()
  for start in range(first, min(first + tfds_tables.SHARD_ROWS, len(rows.user_ids)), tfds_tables.READ_ROWS):
    some = rows.user_ids[start : min(start + tfds_tables.READ_ROWS, first + tfds_tables.SHARD_ROWS)].to_pylist()
    for row, user_id in enumerate(some, start=start):
      yield row, {"user_id": user_id, "items": rows.items[rows.offsets[row] : rows.offsets[row + 1]]}
    if tell is not None:
      tell(len(some))


def _save(directory: pathlib.Path, rows: Rows) -> None:
  """Writes rows for `_open_saved`."""
  np.save(directory / "items.npy", rows.items)
  np.save(directory / "offsets.npy", rows.offsets)
  table = pa.table({"user_id": rows.user_ids})
  with pa.ipc.new_file(directory / "user_ids.arrow", table.schema) as file:
    file.write_table(table)


def _open_saved(directory: pathlib.Path) -> Rows:
  """Rows in files, which are read where they are asked for."""
  user_ids = pa.ipc.open_file(pa.memory_map(str(directory / "user_ids.arrow"))).read_all().column(0)
  items, offsets = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("items", "offsets"))
  return Rows(user_ids, items, offsets, 0)


def beam_pipeline(options: Sequence[str]) -> dict[str, Any]:
  """Options like "runner=DirectRunner" as TFDS takes them.

  Raises:
    InputError: Apache Beam is not installed, or does not know an option or its value.
  """
  try:
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions  # pyright: ignore[reportMissingImports]
    from apache_beam.runners.runner import create_runner  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise InputError(
      f"--beam_options needs Apache Beam ({error}): pip install 'rastp_jax[beam]', or leave it out."
    ) from error
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      parsed = PipelineOptions([f"--{option}" for option in options])
      unknown = parsed.get_all_options(retain_unknown_options=True).keys() - parsed.get_all_options().keys()
    if unknown:
      raise ValueError(f"there is no option {sorted(unknown)[0]}")
    runner = create_runner(parsed.view_as(StandardOptions).runner or "DirectRunner")
  except (SystemExit, Exception) as error:  # argparse exits
    reason = said.getvalue().strip().rpartition("error: ")[2] or str(error)
    raise InputError(
      f"--beam_options={','.join(options)} cannot be used ({reason.splitlines()[0]}): expected options of Apache Beam "
      "like runner=DirectRunner,direct_num_workers=4."
    ) from error
  return {"beam_options": parsed, "beam_runner": runner}
