"""What a user is meant to read when a command ends early, and the exit codes."""

# What a process returns. 0: done; anything else that is not named here is a crash, like any program's.
EXIT_MISTAKE = 2  # a person must act: a mistake in flags, settings or files, a full disk, a loss that is not finite
EXIT_RESUME = 75  # the run is not over and nothing is wrong with it: run the same command again (sysexits' EX_TEMPFAIL)

_LONGEST = 1000  # characters of a sentence


class InputError(ValueError):
  """Something the user gave (file, flag, config value) cannot be used.

  The message is a single sentence a person can act on: what was wrong, where, what was expected, what to do. The
  binaries print it without a traceback and exit with code 2. What it quotes may be of any length: the middle of a very
  long sentence is left out.
  """

  def __init__(self, sentence: str):
    half = _LONGEST // 2
    super().__init__(sentence if len(sentence) <= _LONGEST else f"{sentence[:half]} … {sentence[-half:]}")


class StoppedError(Exception):
  """A signal has stopped what the same command goes on with.

  The message is a sentence that says so. The binaries print it without a traceback and exit with `EXIT_RESUME`.
  """
