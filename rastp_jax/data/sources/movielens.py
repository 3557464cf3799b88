"""MovieLens 100K, 1M, 10M and the sets with CSV files (20M, 25M, 32M, latest), as their archives unpack."""

import dataclasses
import pathlib
from typing import Any

from rastp_jax.config import DataConfig
from rastp_jax.data.items import Item
from rastp_jax.data.sources import raw_files
from rastp_jax.data.sources.interactions import InteractionFiles
from rastp_jax.data.sources.tables import Table
from rastp_jax.errors import InputError

_RATINGS = ("user", "item", "rating", "timestamp")
_GENRES_100K = [
  "unknown",
  "Action",
  "Adventure",
  "Animation",
  "Children's",
  "Comedy",
  "Crime",
  "Documentary",
  "Drama",
  "Fantasy",
  "Film-Noir",
  "Horror",
  "Musical",
  "Mystery",
  "Romance",
  "Sci-Fi",
  "Thriller",
  "War",
  "Western",
]
_MOVIE_100K = ("item", "title", "date", "video_date", "url", *_GENRES_100K)


@dataclasses.dataclass(frozen=True)
class _Edition:
  """The files of one edition and how they are read."""

  ratings: str
  movies: str
  separator: str
  movie_separator: str
  movie_columns: tuple[str, ...] = ("item", "title", "genres")
  header: bool = False


_EDITIONS = (
  _Edition("u.data", "u.item", "\t", "|", _MOVIE_100K),
  _Edition("ratings.dat", "movies.dat", "::", "::"),
  _Edition("ratings.csv", "movies.csv", ",", ",", header=True),
)


class MovieLensFiles(InteractionFiles):
  """Ratings are interactions, whatever their value; the genres of a film are its categories."""

  def _item(self, item_id: str, row: dict[str, Any]) -> Item:
    genres = row.get("genres")
    names = genres.split("|") if genres else [name for name in _GENRES_100K if row.get(name) == "1"]
    known = tuple(name for name in names if name not in ("(no genres listed)", "unknown"))
    wanted = self._config.extra_columns
    extra = {name: raw_files.as_text(row[name]) for name in wanted if row.get(name)}
    return Item(item_id=item_id, title=row.get("title") or "", categories=known, extra=extra)


class MovieLens:
  """The form of these files in a directory: u.data, ratings.dat or ratings.csv."""

  def find(self, root: pathlib.Path, category: str | None) -> list[pathlib.Path]:
    del category
    return [path for edition in _EDITIONS for path in raw_files.find(root, edition.ratings) if _is_one(path)]

  def open(self, root: pathlib.Path, found: list[pathlib.Path], config: DataConfig) -> MovieLensFiles:
    if len(found) > 1:
      raise InputError(f"{root} holds {found[0].name} and {found[1].name}: expected one of them; move the other away.")
    edition = next(one for one in _EDITIONS if found[0].name.removesuffix(".gz") == one.ratings)
    read = dataclasses.replace(
      config,
      user_column="userId" if edition.header else "user",
      item_column="movieId" if edition.header else "item",
      time_column="timestamp",
    )
    ratings = Table(found, () if edition.header else _RATINGS, edition.separator)
    movies = raw_files.find(root, edition.movies)
    if not movies:
      return MovieLensFiles(str(root), read, ratings, None, config)
    names = () if edition.header else edition.movie_columns
    return MovieLensFiles(str(root), read, ratings, Table(movies[:1], names, edition.movie_separator), config)

  def wanted(self, category: str | None) -> str:
    del category
    return "u.data, ratings.dat or ratings.csv of MovieLens"


def _is_one(path: pathlib.Path) -> bool:
  """ratings.csv is a common name: MovieLens is told by its header."""
  if not path.name.removesuffix(".gz").endswith(".csv"):
    return True
  _, header = next(raw_files.lines(path), (1, ""))
  return {"userId", "movieId"} <= {name.strip(' "\r') for name in header.split(",")}
