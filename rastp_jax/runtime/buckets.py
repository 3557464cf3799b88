"""Directories in Google Cloud Storage (gs://BUCKET/…), without TensorFlow.

A bucket has no files that grow and none that can be locked. What a command reads from one is copied into a folder of
this process before it is used, and what it writes there is uploaded; everybody else handles local files. Only
checkpoints go to the bucket directly: Orbax writes and reads them there itself. A lock is an object that is renewed
while its owner lives.

`STORAGE_EMULATOR_HOST` and `TENSORSTORE_GCS_HTTP_URL`, both of the form http://HOST:PORT, replace Google's server.
"""

import atexit
import contextlib
import errno
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Set
from typing import Any

from etils import epath

from rastp_jax.errors import EXIT_RESUME, InputError

SCHEME = "gs://"
# Folders that are copied only where they are asked for by name: written there, never read, or large.
_NOT_COPIED = ("checkpoints", "unreadable_checkpoints", "tensorboard", "profile", "downloads")
_LAST = "dataset_info.json"  # TFDS's; uploaded last, so that a table without it is known to be torn
_FOLDER = "rastp_jax_bucket_"  # in the system's temporary folder, then this host's name and the process's number
_RENEWED = 10.0  # seconds between renewals of a lock
_DEAD = 45.0  # seconds without a renewal after which its owner is taken for dead


def is_url(path: str) -> bool:
  """Whether a path names a bucket of any kind, or was meant to."""
  return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", path) is not None


def local(url: str) -> pathlib.Path:
  """The local copy of an object or of a directory in a bucket, made when it is first asked for.

  Raises:
    InputError: it is not a gs:// path, the package for it is missing, or the bucket cannot be reached.
  """
  match = re.fullmatch(r"gs://([a-z0-9][\w.-]+)(/.*)?", url)
  if match is None:
    raise InputError(
      f"{url} cannot be used: paths are local or in Google Cloud Storage, like gs://BUCKET/DIRECTORY; mount other "
      "storage and give the path of the mount."
    )
  inside = (match[2] or "").lstrip("/")  # normpath leaves two slashes at the beginning
  name = f"{match[1]}{os.path.normpath(f'/{inside}')}".rstrip("/")
  path = _root() / name
  if not _is_copied(name):
    _copy(name, path)
  return path


def _is_copied(name: str) -> bool:
  """Whether an object or a directory was copied, or a directory in which it is."""
  parents = [name, *map(str, pathlib.PurePosixPath(name).parents)]
  inside = next((name.removeprefix(parent) for parent in parents if parent in _copied), None)
  return inside is not None and not _is_left_out(inside.strip("/"))


def _is_left_out(inside: str) -> bool:
  """Whether a path inside a directory leads to one of `_NOT_COPIED`, or into it."""
  return not set(_NOT_COPIED).isdisjoint(inside.split("/"))


def remote(path: pathlib.Path) -> epath.Path | None:
  """Where in a bucket a local copy comes from; None for any other path."""
  if not _root.cache_info().currsize or not path.absolute().is_relative_to(_root()):
    return None
  return epath.Path(f"{SCHEME}{path.absolute().relative_to(_root())}")


def shown(text: object) -> str:
  """A text with the paths of local copies as those in the bucket."""
  return str(text).replace(f"{_root()}/", SCHEME) if _root.cache_info().currsize else str(text)


def upload(path: pathlib.Path) -> None:
  """Uploads what has changed in a local copy, a file or a directory; without effect on any other path.

  Raises:
    OSError: it cannot be uploaded.
  """
  if remote(path) is None or not _unfinished.isdisjoint((path, *path.parents)):
    return
  found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
  changed = [file for file in sorted(found, key=lambda file: file.name == _LAST) if _uploaded.get(file) != _state(file)]
  for file in changed:
    state = _state(file)
    try:
      _files().put_file(str(file), str(remote(file)))
    except Exception as error:
      raise OSError(errno.EIO, f"cannot be uploaded: {_reason(error)}", str(remote(file))) from error
    _uploaded[file] = state


@contextlib.contextmanager
def unfinished(path: pathlib.Path) -> Iterator[None]:
  """Nothing in this directory is uploaded inside the context: it will have another name."""
  _unfinished.add(path)
  try:
    yield
  finally:
    _unfinished.remove(path)


def copy_again(path: pathlib.Path) -> None:
  """Copies a directory again, but for what this process has changed in it; without effect elsewhere.

  Raises:
    InputError: the bucket cannot be reached.
  """
  place = remote(path)
  if place is None:
    return
  changed = set()
  for file in [file for file in path.rglob("*") if file.is_file()]:
    if _uploaded.get(file) == _state(file):
      file.unlink()
    else:
      changed.add(file)
  _copy(str(place).removeprefix(SCHEME), path, without=changed)


def upload_soon(path: pathlib.Path, seconds: float = 5.0) -> None:
  """Uploads a directory, if that was not done in the last seconds."""
  if remote(path) is not None and time.monotonic() - _uploaded_at.get(path, -seconds) >= seconds:
    upload(path)
    _uploaded_at[path] = time.monotonic()


def check_writable(path: pathlib.Path) -> None:
  """Makes sure that a local copy can be uploaded; without effect on any other path.

  Raises:
    InputError: it cannot.
  """
  place = remote(path)
  if place is not None:
    with reaching(place):
      probe = f"{place.parent}/.{place.name}.{os.getpid()}"
      _files().pipe_file(probe, b"")
      _files().rm_file(probe)


def remove(path: pathlib.Path) -> None:
  """Removes a file, if it is there; a local copy with what it is a copy of.

  Raises:
    InputError: the bucket cannot be reached.
  """
  place = remote(path)
  if place is not None and path.exists():
    with reaching(place):
      _files().rm_file(str(place))
  path.unlink(missing_ok=True)


def move(path: pathlib.Path | epath.Path, target: pathlib.Path | epath.Path) -> None:
  """Gives a directory another name, in a file system or in a bucket."""
  if isinstance(path, pathlib.Path):
    path.rename(target)
  else:  # etils needs the target's parent to exist, which in a bucket it does not before something is in it
    _files().mv(str(path), str(target), recursive=True)


@contextlib.contextmanager
def lock(place: epath.Path) -> Iterator[None]:
  """Holds an object in a bucket that keeps out others who ask for it, until the context or this process ends.

  It is written only where it is as this process has last seen it, so that of several one alone gets it. One that was
  left behind is taken over: at once where its process was on this machine, else after `_DEAD` seconds without renewal.

  Raises:
    InputError: another process holds it.
  """
  lease = _Lease(place)
  lease.take()
  renewing = threading.Thread(target=lease.keep, daemon=True)
  renewing.start()
  try:
    yield
  finally:
    lease.released.set()
    renewing.join()
    lease.give_back()


class _Lease:
  """The object behind `lock`. Its generation, which the bucket gives, tells whether it is still the same."""

  def __init__(self, place: epath.Path):
    import tensorstore  # imported here: only buckets need it, besides Orbax

    bucket, _, self._key = str(place).removeprefix(SCHEME).partition("/")
    self._place = place
    self._store = tensorstore.KvStore.open({"driver": "gcs", "bucket": bucket}).result()
    self._generation = b""
    # Hosts and process numbers come again, as in a pod that was replaced; the last name does not.
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "lease": uuid.uuid4().hex}
    self._value = json.dumps(owner).encode()
    self.released = threading.Event()

  def take(self) -> None:
    with reaching(self._place):
      found = self._read()
      if found.state != "missing" and not _is_dead(found.value):
        owner = _owner(found.value)
        print(f"{self._place}: held by {owner}; waiting {_DEAD:.0f} s for a sign of it", file=sys.stderr, flush=True)
        before, until = found.stamp.generation, time.monotonic() + _DEAD
        while found.state != "missing" and time.monotonic() < until:
          time.sleep(1)
          found = self._read()
          if found.state != "missing" and found.stamp.generation != before:
            raise InputError(
              f"{owner} is writing to {self._place.parent}: wait until it ends, stop it, or choose another directory."
            )
      if not self._write(found.stamp.generation):
        raise InputError(f"Another process has just begun to write to {self._place.parent}: choose another directory.")

  def keep(self) -> None:
    """Renews it until it is released. Where it was lost, this process must not write any more, and ends."""
    while not self.released.wait(_RENEWED):
      try:
        mine = self._write(self._generation)
      except Exception:  # the bucket does not answer: perhaps the next time
        continue
      if not mine:
        print(
          f"error: {self._place} was taken over by another process, because this one did not answer for {_DEAD:.0f} s.",
          file=sys.stderr,
          flush=True,
        )
        os._exit(EXIT_RESUME)

  def give_back(self) -> None:
    with contextlib.suppress(Exception):  # it will be taken for dead
      self._store.write(self._key, None, if_equal=self._generation).result()

  def _read(self) -> Any:
    return self._store.read(self._key).result()

  def _write(self, seen: bytes) -> bool:
    """Whether it is this lease's: written now, because it was as seen, or before, by a write whose answer was lost."""
    generation = self._store.write(self._key, self._value, if_equal=seen).result().generation
    if not generation:
      found = self._read()
      generation = found.stamp.generation if found.value == self._value else b""
    if generation:
      self._generation = generation
    return bool(generation)


def _is_dead(owner: bytes) -> bool:
  """Whether the process that wrote itself into a lock was on this machine and is gone."""
  try:
    values = json.loads(owner)
    if values["host"] != socket.gethostname():
      return False
    return not _is_alive(int(values["pid"]))
  except (ValueError, KeyError, TypeError):
    return False


def _is_alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True


def _owner(value: bytes) -> str:
  try:
    return "process {pid} on {host}".format(**json.loads(value))
  except (ValueError, KeyError, TypeError):
    return "another process"


@contextlib.contextmanager
def reaching(place: object) -> Iterator[None]:
  """Whatever the libraries underneath raise, where a bucket is first asked for, becomes a sentence."""
  try:
    yield
  except InputError:
    raise
  except Exception as error:  # gcsfs, aiohttp, google-auth and TensorStore each raise their own kinds
    raise InputError(
      f"{place} cannot be reached ({_reason(error)}): check the bucket's name, that this machine is logged in (gcloud "
      "auth application-default login), and that its account may read and write there."
    ) from error


_copied: set[str] = set()  # names, of objects and directories
_uploaded: dict[pathlib.Path, tuple[int, int]] = {}
_uploaded_at: dict[pathlib.Path, float] = {}
_unfinished: set[pathlib.Path] = set()  # directories that are being written under a temporary name


@functools.cache
def _files() -> Any:
  """The file system behind gs://, which is also that of etils' paths, and so Orbax's."""
  try:
    import fsspec
    import gcsfs  # noqa: F401  # pyright: ignore[reportMissingImports] (the extra `gcs`)
  except ImportError as error:
    raise InputError(
      "Paths that begin with gs:// need the package gcsfs: install it by `pip install 'rastp_jax[gcs]'` (in a clone: "
      "`.venv/bin/pip install gcsfs`), or give a local path."
    ) from error
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback of what it then raises
  system = fsspec.filesystem("gs", finalize_on_close=True)  # as etils asks for it
  # Listings that are remembered would be of before: TensorStore and other processes write there, too.
  system.dircache.use_listings_cache = False
  return system


@functools.cache
def _root() -> pathlib.Path:
  """The folder of this process's copies. Those of processes that were killed on this host go."""
  parent = pathlib.Path(tempfile.gettempdir())  # may be one that hosts share
  folder = f"{_FOLDER}{socket.gethostname()}_"
  for left in parent.glob(f"{folder}*"):
    owner = left.name.removeprefix(folder).partition("_")[0]
    if owner.isdecimal() and not _is_alive(int(owner)):
      shutil.rmtree(left, ignore_errors=True)
  root = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder}{os.getpid()}_")).resolve()
  atexit.register(shutil.rmtree, root, ignore_errors=True)
  return root


def _copy(name: str, path: pathlib.Path, without: Set[pathlib.Path] = frozenset()) -> None:
  """Copies an object, or a directory without the folders of `_NOT_COPIED` and without those files that must stay."""
  with reaching(f"{SCHEME}{name}"):
    found = _files().find(name)
    below = [one.removeprefix(f"{name}/") for one in found if one.startswith(f"{name}/")]
    torn = {one.rpartition("/")[0] for one in below if ".array_record" in one}
    torn -= {one.rpartition("/")[0] for one in below if one.endswith(f"/{_LAST}") or one == _LAST}
    wanted = [
      one for one in below if not one.endswith("/") and not _is_left_out(one) and one.rpartition("/")[0] not in torn
    ]
    if name in found:
      path.parent.mkdir(parents=True, exist_ok=True)
      _files().get_file(name, str(path))
      _uploaded[path] = _state(path)
    elif below:
      path.mkdir(parents=True, exist_ok=True)
    for one in wanted:
      target = path / one
      if target in without:
        continue
      target.parent.mkdir(parents=True, exist_ok=True)
      _files().get_file(f"{name}/{one}", str(target))
      _uploaded[target] = _state(target)
  _copied.add(name)


def _state(path: pathlib.Path) -> tuple[int, int]:
  found = path.stat()
  return found.st_size, found.st_mtime_ns


def _reason(error: Exception) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
