"""From raw files to a prepared dataset: finds the form of the files, and prepares what is not prepared yet."""

import pathlib
from collections.abc import Sequence

from rastp_jax.config import DataConfig
from rastp_jax.data import datasets, preparation, prepared
from rastp_jax.data.prepared import Prepared
from rastp_jax.data.sources import amazon2014, interactions
from rastp_jax.data.sources.amazon2014 import Amazon2014
from rastp_jax.data.sources.amazon2018 import Amazon2018
from rastp_jax.data.sources.amazon2023 import Amazon2023
from rastp_jax.data.sources.interactions import InteractionsDirectory
from rastp_jax.data.sources.movielens import MovieLens
from rastp_jax.data.sources.sequences import Sequences
from rastp_jax.data.sources.source import Form, Source
from rastp_jax.data.sources.tables import SUFFIXES
from rastp_jax.data.splits import Split
from rastp_jax.errors import InputError
from rastp_jax.runtime import files

DOWNLOADS = "downloads"  # under config.data.data_dir

# A new form is one class and one line. Each says for itself which directories are of it.
FORMS: Sequence[Form] = (
  Sequences(),
  Amazon2014(),
  Amazon2018(),
  Amazon2023(),
  MovieLens(),
  InteractionsDirectory(),
)


def prepare_dataset(
  config: DataConfig,
  raw_dir: str | None = None,
  *,
  needs_source: bool = False,
  beam_options: Sequence[str] | None = None,
) -> tuple[Prepared, Source | None]:
  """Prepares the configured dataset under config.data_dir, or finds it there.

  Args:
    config: names the dataset, the split, and the columns and filters of the user's own files.
    raw_dir: directory of the raw files; see `open_source` for when none is needed.
    needs_source: open the source, where that takes no raw_dir, even if the dataset is there.
    beam_options: see `preparation.prepare`.

  Returns:
    The dataset, and its source if it was opened.

  Raises:
    InputError: as `open_source` and `preparation.prepare`.
  """
  found = prepared.find_prepared(config.data_dir, config.dataset)
  known = datasets.named(config.dataset)
  downloaded = known.category is not None and amazon2014.is_downloaded(_downloads(config), known.category)
  split = Split.of(config)
  if found is not None and not raw_dir and known.source is None and not (needs_source and downloaded):
    check_prepared(found, config)
    return found, None
  source = open_source(config, raw_dir)
  return preparation.prepare(config.data_dir, config.dataset, source, split, beam_options), source


def check_prepared(found: Prepared, config: DataConfig) -> None:
  """Raises InputError where a prepared dataset was made with other settings than the config's."""
  of_rows = interactions.settings_of_rows(config) if "user_column" in found.settings else {}
  prepared.check_settings(found, {**of_rows, **Split.of(config).settings})


def open_source(config: DataConfig, raw_dir: str | None) -> Source:
  """Opens the configured dataset's raw rows.

  Some datasets of `datasets.DATASETS` need no directory: the synthetic one, and those whose files are downloaded where
  none is given. A directory holds files of one of `FORMS`, each file but Parquet also gzipped, or one folder with them.

  Raises:
    InputError: the directory is missing, holds none or two of these forms, or lacks a file of one; a download fails.
  """
  name = config.dataset
  known = datasets.named(name)
  if known.source is not None:
    return known.source()
  if not raw_dir:
    if known.category is not None:
      return amazon2014.download(_downloads(config), known.category)
    raise InputError(f"Dataset {name!r} needs raw files: name their directory with --raw_dir=DIR{datasets.hint(name)}")
  root = files.check_path(raw_dir)
  if not root.is_dir():
    raise InputError(f"There is no directory {raw_dir}: give --raw_dir a directory with {_wanted(known.category)}.")
  found = _found(root, known.category)
  if not found:  # an archive may unpack to a folder
    folders = [path for path in root.iterdir() if path.is_dir() and _found(path, known.category)]
    if len(folders) == 1:
      root = folders[0]
      found = _found(root, known.category)
  if not found:
    raise InputError(
      f"{raw_dir} holds nothing to prepare {name!r} from: looked for {_wanted(known.category)}{_unknown_format(root)}."
    )
  if len(found) > 1:
    several = " and ".join(paths[0].name for _, paths in found)
    raise InputError(f"{raw_dir} holds {several}: expected the files of one form; move the others away.")
  ((form, paths),) = found
  return form.open(root, paths, config)


def _downloads(config: DataConfig) -> pathlib.Path:
  return files.below(config.data_dir, DOWNLOADS)


def _found(root: pathlib.Path, category: str | None) -> list[tuple[Form, list[pathlib.Path]]]:
  found = ((form, form.find(root, category)) for form in FORMS)
  return [(form, paths) for form, paths in found if paths]


def _wanted(category: str | None) -> str:
  *forms, last = (form.wanted(category) for form in FORMS)
  return f"{', '.join(forms)}, or {last} (each but Parquet also as .gz)"


def _unknown_format(root: pathlib.Path) -> str:
  """Names a file that looks like one of these, but has another ending."""
  known, tables = ("interactions", "sequences.", "reviews_", "ratings"), tuple(SUFFIXES)
  names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
  near = [name for name in names if name.startswith(known)]
  others = [name for name in names if name.lower().removesuffix(".gz").endswith(tables)]
  if near or not others:
    return f"; {near[0]} has another name or form" if near else ""
  return f"; if {others[0]} holds them, call it interactions{''.join(pathlib.Path(others[0]).suffixes).lower()}"
