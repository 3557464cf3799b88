"""What the machine lacks, as a sentence instead of a traceback: a device, memory, a package, a file's permission."""

import errno
import os

import jax

# What a person must mend. Other errors of a file system may be gone at the next start.
_LASTING = {
  errno.EACCES,
  errno.EDQUOT,
  errno.EEXIST,
  errno.EISDIR,
  errno.ELOOP,
  errno.EMFILE,
  errno.ENAMETOOLONG,
  errno.ENFILE,
  errno.ENOENT,
  errno.ENOMEM,
  errno.ENOSPC,
  errno.ENOTDIR,
  errno.EPERM,
  errno.EROFS,
}
_MEMORY = "use a smaller train.batch_size or eval.batch_size, a smaller model, or a machine with more memory"

# JAX's own advice, which ours replaces.
_ADVICE = " (set JAX_PLATFORMS='' to automatically choose an available backend)"


def explain(error: BaseException) -> str | None:
  """The sentence for an error that the machine caused and a person must act on; None for any other error."""
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    return f"The memory does not suffice ({_first_line(error)}): {_MEMORY}."
  if isinstance(error, ImportError):
    return (
      f"A package is missing or damaged ({_first_line(error)}): install what requirements.txt lists, or this package "
      "again."
    )
  if isinstance(error, OSError):
    if error.errno not in _LASTING or not error.strerror:
      return None
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "A file"
    return f"{place} cannot be used ({error.strerror}): mend that and run the same command again."
  return _without_device()


def _without_device() -> str | None:
  """The sentence where JAX finds no device."""
  try:
    jax.local_devices()
  except Exception as error:  # which kind depends on the device that was asked for
    asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue] (set from JAX_PLATFORMS)
    wanted = f"JAX_PLATFORMS={asked}" if asked else "JAX"
    reason = f" ({_first_line(error)})" if str(error) else ""
    return (
      f"{wanted} finds no device{reason.replace(_ADVICE, '')}: install the JAX build for it (pip install "
      "'rastp_jax[cuda13]' or [tpu]; JAX_BUILD=cuda13 for the scripts), see that no other process uses it, or set "
      "JAX_PLATFORMS=cpu."
    )
  return None


def _first_line(error: BaseException) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
