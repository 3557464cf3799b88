"""The one exception a user is meant to read."""


class InputError(ValueError):
  """Something the user gave (file, flag, config value) cannot be used.

  The message is a single sentence a person can act on: what was wrong, where, what was expected, what to do. The
  binaries print it without a traceback and exit with code 2.
  """
