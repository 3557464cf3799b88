"""From raw files to a prepared dataset: which source it is, told by file names, and whether there is anything to do."""

import pathlib

from rastp_jax.config import DataConfig
from rastp_jax.data import amazon_reviews, interactions, official, sources
from rastp_jax.data.amazon_reviews import Prepared
from rastp_jax.data.interactions import InteractionsDirectory
from rastp_jax.data.official import OfficialFiles
from rastp_jax.data.sequences import SequencesDirectory
from rastp_jax.data.sources import Source
from rastp_jax.data.synthetic import SyntheticSource
from rastp_jax.errors import InputError

DOWNLOADS = "downloads"  # under config.data.data_dir


def prepare_dataset(
  config: DataConfig, raw_dir: str | None = None, *, needs_source: bool = False
) -> tuple[Prepared, Source | None]:
  """Prepares the configured dataset under config.data_dir, or finds it there.

  Args:
    config: names the dataset, and the columns and filters of a file of the user's own.
    raw_dir: directory of the raw files; see `open_source` for when none is needed.
    needs_source: open the source, where that takes no raw_dir, even if the dataset is there.

  Returns:
    The dataset, and its source if it was opened.

  Raises:
    InputError: as `open_source` and `amazon_reviews.prepare`.
  """
  found = amazon_reviews.find_prepared(config.data_dir, config.dataset)
  downloads = pathlib.Path(config.data_dir) / DOWNLOADS
  at_hand = needs_source and official.is_downloaded(downloads, config.dataset)
  if found is not None and not raw_dir and config.dataset != "synthetic" and not at_hand:
    amazon_reviews.check_settings(found, {name: getattr(config, name) for name in found.settings})
    return found, None
  source = open_source(config, raw_dir)
  return amazon_reviews.prepare(config.data_dir, config.dataset, source), source


def open_source(config: DataConfig, raw_dir: str | None) -> Source:
  """Opens the configured dataset's raw rows.

  The synthetic dataset needs no directory; without one, an official dataset is downloaded. A directory holds one of:

  - sequences.txt and items.jsonl (`SequencesDirectory`)
  - reviews_CATEGORY_5.json and meta_CATEGORY.json (`OfficialFiles`), of the category of `official.CATEGORIES`, or of
    any one category for a dataset of another name
  - interactions.csv, .jsonl or .parquet (`InteractionsDirectory`)

  each file but Parquet also gzipped.

  Raises:
    InputError: the directory is missing, holds none or two of these forms, or lacks a file of one; a download fails.
  """
  name = config.dataset
  if name == "synthetic":
    return SyntheticSource()
  if not raw_dir:
    if name in official.CATEGORIES:
      return official.download(pathlib.Path(config.data_dir) / DOWNLOADS, name)
    raise InputError(f"Dataset {name!r} needs raw files: name their directory with --raw_dir=DIR.")
  root = pathlib.Path(raw_dir)
  if not root.is_dir():
    raise InputError(f"There is no directory {raw_dir}: give --raw_dir a directory with {_wanted(name)}.")
  reviews, _ = official.file_names(official.CATEGORIES.get(name, "*"))
  forms = {
    SequencesDirectory: sources.find(root, "sequences.txt"),
    OfficialFiles: sorted([*root.glob(reviews), *root.glob(f"{reviews}.gz")]),
    InteractionsDirectory: sources.find(root, *interactions.INTERACTION_FILES),
  }
  found = {form: files for form, files in forms.items() if files}
  if not found:
    raise InputError(
      f"{raw_dir} holds nothing to prepare {name!r} from: looked for {_wanted(name)}{_unknown_format(root)}."
    )
  if len(found) > 1:
    several = " and ".join(files[0].name for files in found.values())
    raise InputError(f"{raw_dir} holds {several}: expected the files of one form; move the others away.")
  ((form, files),) = found.items()
  if form is SequencesDirectory:
    return SequencesDirectory(raw_dir)
  if form is InteractionsDirectory:
    return InteractionsDirectory(raw_dir, config)
  return _official(root, files)


def _official(root: pathlib.Path, reviews: list[pathlib.Path]) -> OfficialFiles:
  if len(reviews) > 1:
    raise InputError(
      f"{root} holds {reviews[0].name} and {reviews[1].name}: expected one of them; move the other away."
    )
  category = reviews[0].name.removeprefix("reviews_").split("_5.json")[0]
  _, meta = official.file_names(category)
  found = sources.find(root, meta)
  if len(found) != 1:
    what = f"both {meta} and {meta}.gz" if found else f"no {meta} or {meta}.gz"
    raise InputError(f"{root} holds {reviews[0].name} but {what}: expected exactly one, for the products' text.")
  return OfficialFiles(reviews[0], found[0])


def _wanted(name: str) -> str:
  reviews, meta = official.file_names(official.CATEGORIES.get(name, "CATEGORY"))
  return (
    f"sequences.txt and items.jsonl, {reviews} and {meta}, or {', '.join(interactions.INTERACTION_FILES)} (each but "
    "Parquet also as .gz)"
  )


def _unknown_format(root: pathlib.Path) -> str:
  """Tells of a file that was surely meant, but has another ending."""
  near = sorted(
    path.name for path in root.iterdir() if path.name.startswith(("interactions.", "sequences.", "reviews_"))
  )
  return f"; {near[0]} has another name or form" if near else ""
