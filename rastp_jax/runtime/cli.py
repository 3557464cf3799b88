"""What all commands share: the --config flag, and mistakes of the user ended by one sentence instead of a traceback."""

import contextlib
import difflib
import io
import logging
import os
import pathlib
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

# Before libraries are imported that read their settings once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import jax  # noqa: E402
from absl import app, flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from rastp_jax import config as config_lib  # noqa: E402
from rastp_jax.errors import EXIT_MISTAKE, EXIT_RESUME, InputError, StoppedError  # noqa: E402
from rastp_jax.runtime import buckets, machine, processes, recorded_config, xla  # noqa: E402

GRACE_SECONDS = 20  # that a process which found a mistake waits for the others of its run to find it, too

_COMPILATION_CACHE = flags.DEFINE_string(
  "compilation_cache",
  None,
  "Directory that keeps compiled programs, so that the next run of the same program starts at once.",
)


def define_config_flag() -> flags.FlagHolder:
  """Defines --config=FILE and its --config.SECTION.FIELD=VALUE overrides; hand its value to `load_config`."""
  holder = config_flags.DEFINE_config_file(
    "config",
    None,
    "A dataset that comes with this package, or a Python file with get_config(), variants after a colon, like "
    "beauty:cpu,dense or configs/own.py:cpu, or the config.json of a run; override settings with "
    f"--config.SECTION.FIELD=VALUE. {_settings_help()}",
  )
  flags.FLAGS["config"].default_as_str = None  # --help would show the default 'None'
  return holder


def _settings_help() -> str:
  """All settings, where they are asked for."""
  asked = any(argument.lstrip("-").startswith(("help", "?")) for argument in sys.argv[1:])
  return f"All settings with their defaults:\n{config_lib.describe_settings()}" if asked else ""


def define_override_flag(example: str) -> flags.FlagHolder:
  """Defines --override=SECTION.FIELD=VALUE, by which a command reads a run with other settings than its own.

  Args:
    example: what this command may use it for.
  """
  return flags.DEFINE_multi_string(
    "override",
    [],
    f"SECTION.FIELD=VALUE that differs from the run's own settings, within {config_lib.overridable()}, {example}. May "
    "be given several times.",
  )


def define_host_flags() -> None:
  """Defines the flags by which several processes find each other; `run` joins them before it calls `main`."""
  flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where a cluster is not recognised by itself (TPU, SLURM)."
  )
  flags.DEFINE_integer("num_processes", None, "Processes of this run; 1: this one alone.", lower_bound=1)
  flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", lower_bound=0)


def load_config(flag_value: Any, begun: Callable[[], config_lib.Config | None] = lambda: None) -> config_lib.Config:
  """Turns the value of the --config flag into checked settings; model.dtype=auto becomes one of the dtypes.

  Args:
    flag_value: what the flag holds.
    begun: the settings of the run that goes on, if there is one: auto is what it computes in, on any machine.

  Raises:
    InputError: the flag was not given, or a value makes no sense.
  """
  if flag_value is None:
    raise InputError("--config is missing: give a config, like --config=beauty:cpu or --config=configs/own.py.")
  try:
    getattr(flag_value, "keys", None)  # in place of a file that cannot be read, ml_collections gives what raises here
  except OSError as error:
    raise InputError(f"The config file cannot be used: {error.__cause__ or error}.") from error
  config = config_lib.from_dict(flag_value)
  if config.model.dtype != "auto":
    return config
  before = begun()
  return config_lib.with_values(config, [("model.dtype", before.model.dtype if before else xla.fast_dtype())])


def require(flag: flags.FlagHolder, example: str) -> Any:
  """A flag's value; raises InputError unless it was given."""
  if not flag.value:
    raise InputError(f"--{flag.name} is missing: give it like --{flag.name}={example}.")
  return flag.value


def command_line() -> str:
  """The command that started this process, as results record it."""
  program, *arguments = sys.orig_argv[1:]
  called = ["rastp"] if pathlib.Path(program).name == "rastp" else ["python", program]
  return shlex.join([*called, *arguments])


def run(main: Callable[[], int | None]) -> NoReturn:
  """Parses flags, calls `main`, and exits with what it returns (None: 0).

  A mistake in the flags, the config or the files (`InputError`) and what the machine lacks end in one line on stderr
  and `EXIT_MISTAKE`; a run of several processes that loses one of them, and what was stopped and can go on
  (`StoppedError`), in `EXIT_RESUME`. What SIGTERM or Ctrl-C ends otherwise removes first what it has half written
  (`preemption.listen` goes before).
  """
  sys.stdout, sys.stderr = _until_gone(sys.stdout), _until_gone(sys.stderr)
  _one_device_per_core()
  # Orbax and TFDS log through absl too: show their warnings only.
  absl_logging.get_absl_handler().addFilter(_ours_or_serious)
  logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)  # hides "no GPU found"
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # one traceback per file when the disk is full

  def guarded(argv: Sequence[str]):
    try:
      if len(argv) > 1:
        raise InputError(f"{argv[1]!r} is not a flag: flags are written --name=value.")
      if _COMPILATION_CACHE.value:
        jax.config.update("jax_compilation_cache_dir", _COMPILATION_CACHE.value)
      if "coordinator_address" in flags.FLAGS:
        processes.join(*(flags.FLAGS[name].value for name in ("coordinator_address", "num_processes", "process_id")))
      with _stopped_by_sigterm():  # JAX has set a handler of its own when several processes have joined
        return main()
    except (KeyboardInterrupt, _Stopped) as stop:
      _stop(stop)
    except StoppedError as stop:
      print(f"\n{stop}", file=sys.stderr, flush=True)
      sys.exit(EXIT_RESUME)
    except InputError as error:
      _leave_at_last()
      _fail(str(error))
    except Exception as error:
      sentence = machine.explain(error)
      if sentence:
        _fail(sentence, at_once=jax.distributed.is_initialized())
      if isinstance(error, RuntimeError | ValueError):  # what JAX and Orbax raise when another process is gone
        processes.abort_if_peer_lost(error, EXIT_RESUME)
      raise

  app.run(guarded, flags_parser=_parse)


class _Stopped(BaseException):
  """SIGTERM has come."""


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
  """Inside, the first SIGTERM raises `_Stopped`, and another one ends the process at once; unless it is handled."""
  if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
    yield
    return

  def stop(*_) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Stopped

  signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(stop: BaseException) -> NoReturn:
  """Ends the process with what shells show of one that a signal ended, and without a traceback."""
  number = signal.SIGTERM if isinstance(stop, _Stopped) else signal.SIGINT
  print(f"\n{number.name}: stopped.", file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():  # an ordinary exit waits for the others
    time.sleep(3)  # the end of process 0 aborts those that are still removing theirs
    os._exit(128 + number)
  if number == signal.SIGTERM:
    sys.exit(128 + number)
  sys.excepthook = lambda *_: None
  raise stop  # Python ends by SIGINT, so that a shell's loop ends, too


class _UntilGone(io.FileIO):
  """What a terminal or a pipe is told, until nobody reads it any more: the rest is thrown away, and work goes on."""

  def write(self, data) -> int | None:
    try:
      return super().write(data)
    except BrokenPipeError:
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, self.fileno())
      os.close(nowhere)
      return super().write(data)


def _until_gone(stream: TextIO) -> TextIO:
  """The stream, which neither a reader that has ended (`| head`) nor a file's name that is not text can break."""
  if not isinstance(stream, io.TextIOWrapper) or stream not in (sys.__stdout__, sys.__stderr__):
    return stream  # a notebook's or a test's own
  stream.flush()
  raw = io.BufferedWriter(_UntilGone(stream.fileno(), "w", closefd=False))
  buffered = not stream.line_buffering and stream is sys.__stdout__
  return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=not buffered)


def _ours_or_serious(record: logging.LogRecord) -> bool:
  """Whether to show a record; of those of libraries a line, without traceback: our sentence says what is wrong."""
  ours = record.pathname.startswith(str(pathlib.Path(__file__).parents[1]))
  if not ours:
    record.msg, record.args, record.exc_info = f"{record.getMessage()}\n".splitlines()[0][:300], (), None
  return ours or record.levelno >= logging.WARNING


def _one_device_per_core() -> None:
  """On a CPU, makes each core a JAX device of its own (8 at most); without effect on accelerators.

  Sharing a batch between single-threaded devices keeps cores busier than threads inside each operation: the
  CPU-sized model trains faster so. XLA_FLAGS=--xla_force_host_platform_device_count=N goes before.
  """
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    devices = min(8, os.cpu_count() or 1)
    jax.config.update("jax_num_cpu_devices", devices)
    # A thread blocked in an all-reduce leaves XLA's pool; with one thread per core this has deadlocked. Use four per
    # device, and no async dispatch.
    os.environ.setdefault("NPROC", str(4 * devices))
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    # ml_collections looks for settings in sys.argv, whatever it is given.
    sys.argv = [argv[0], *config_lib.translate_arguments(_find_config_files(argv[1:]), _note)]
    return flags.FLAGS(sys.argv)
  except InputError as error:
    _fail(str(error))
  except flags.IllegalFlagValueError as error:
    _fail(_illegal_value(str(error)))
  except flags.Error as error:
    _fail(f"{error}: see --help for the flags there are.")
  except Exception as error:  # whatever a config file's own code raises, under ml_collections' wrapping
    last_line = (str(error).strip() or type(error).__name__).splitlines()[-1]
    _fail(f"The config file cannot be used: {last_line}.")


def _leave_at_last() -> None:
  """Ends one of several processes after a grace, whatever holds it: an ordinary exit waits for the others.

  Most mistakes are found by all processes, which then leave together, each with its code. What one alone finds, like a
  full disk, would keep it waiting for others that wait for it.
  """
  if jax.distributed.is_initialized():
    timer = threading.Timer(GRACE_SECONDS, os._exit, [EXIT_MISTAKE])
    timer.daemon = True
    timer.start()


def _fail(sentence: str, at_once: bool = False) -> NoReturn:
  """Ends the process with a sentence; `at_once`, without waiting for the other processes of its run."""
  print("error:", " ".join(buckets.shown(sentence).split()), file=sys.stderr, flush=True)
  if at_once:
    os._exit(EXIT_MISTAKE)
  sys.exit(EXIT_MISTAKE)


def _note(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def _find_config_files(arguments: Sequence[str]) -> list[str]:
  """The arguments, with the path of every --config in place of its name."""
  found = list(arguments)
  end = found.index("--") if "--" in found else len(found)
  for place in range(end):
    name, sign, value = found[place].partition("=")
    if name in ("--config", "-config"):
      if sign:
        found[place] = f"{name}={_find_config_file(value)}"
      elif place + 1 < end:
        found[place + 1] = _find_config_file(found[place + 1])
  return found


def _find_config_file(value: str) -> str:
  """PATH or PATH:VARIANTS of a config that is given by its path or by the name of one that comes with the package.

  Raises:
    InputError: there is none, or it is JSON that holds no settings; ml_collections would end in a traceback.
  """
  if value.endswith(".json"):
    recorded_config.get_config(value)
    return f"{recorded_config.__file__}:{value}"
  recorded, colon, variants = value.partition(".json:")
  if colon:
    raise InputError(
      f"{recorded}.json takes no variants: leave out :{variants}, and give settings as flags of their own."
    )
  path, colon, variants = value.partition(":")
  shipped = pathlib.Path(__file__).parents[1] / "configs"
  if "/" not in path and not path.endswith(".py"):
    near, there = path, sorted(file.stem for file in shipped.glob("*.py"))
    path = str(shipped / f"{path}.py")
  else:
    near, there = path, sorted(map(str, pathlib.Path(path).parent.glob("*.py")))
  if pathlib.Path(path).is_file():
    return f"{path}{colon}{variants}"
  close = difflib.get_close_matches(near, there, n=1)
  hint = f"did you mean {close[0]}?" if close else "give the path of a config file, or a name like beauty."
  raise InputError(f"There is no config file {near!r}: {hint}")


def _illegal_value(message: str) -> str:
  if "Traceback" in message:  # from inside a config file: what it raised stands in the last line
    flag, last_line = message.split(":", 1)[0], message.strip().splitlines()[-1]
    variant = re.match(r"flag (\S+\.py:?[\w,]*)", message)
    reason = re.sub(r"^[\w.]*(Error|Exception): ", "", last_line)
    return f"{variant[1] if variant else flag} cannot be used: {reason}."
  match = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
  found = config_lib.all_settings().get(match[1]) if match else None
  if match is None or found is None:
    return f"{message}: see --help for the values it takes."
  kind = found.kind
  expected = kind.__name__ if isinstance(kind, type) and kind.__module__ == "builtins" else str(kind)
  return f"--config.{match[1]}={match[2]} cannot be read: expected {expected}."
