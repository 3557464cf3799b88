"""What the machine lacks ends a command in one sentence and exit code 2, never in a traceback."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from rastp_jax import config as config_lib
from rastp_jax.configs import base
from rastp_jax.runtime import cli, machine, xla
from rastp_jax.training.workdir import Workdir
from tests.helpers.commands import ROOT


def too_much_memory():
  np.empty((2**50,), np.float64)


def too_much_for_the_device():
  jax.numpy.zeros((2**46,), np.int8).block_until_ready()


def missing_package():
  import no_such_package  # noqa: F401  # pyright: ignore[reportMissingImports]


def missing_file():
  pathlib.Path("/nowhere/at/all").read_bytes()


@pytest.mark.parametrize(
  ("fault", "sentence"),
  [
    (too_much_memory, "The memory does not suffice (Unable to allocate 8.00 PiB"),
    (
      too_much_for_the_device,
      "The memory does not suffice (RESOURCE_EXHAUSTED: Out of memory allocating 70368",
    ),
    (missing_package, "A package is missing or damaged (No module named 'no_such_package')"),
    (missing_file, "/nowhere/at/all cannot be used (No such file or directory)"),
  ],
)
def test_faults_of_the_machine_are_sentences(fault, sentence, monkeypatch, capsys):
  monkeypatch.setattr(cli.app, "run", lambda guarded, flags_parser: guarded(flags_parser(["command"])))
  monkeypatch.setattr(cli, "_one_device_per_core", lambda: None)  # the tests' devices are there already
  monkeypatch.setattr(cli.processes, "join", lambda *_: None)  # too late for that in a process that has devices
  with pytest.raises(SystemExit) as ended:
    cli.run(fault)
  printed = capsys.readouterr().err
  assert ended.value.code == 2
  assert printed.startswith(f"error: {sentence}") and printed.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(5, "Input/output error", "x"), TimeoutError("late")])
def test_other_errors_stay_what_they_are(error):
  """A traceback for bugs; and a file system that does not answer may do so at the next start."""
  assert machine.explain(error) is None


def test_a_device_that_is_not_there(tmp_path):
  command = [sys.executable, "-m", "rastp_jax.train", "--config=tiny", f"--workdir={tmp_path}/run"]
  done = subprocess.run(
    command,
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cuda"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("error: JAX_PLATFORMS=cuda finds no device") and done.stderr.count("\n") == 1
  assert "JAX_BUILD=cuda13" in done.stderr and not (tmp_path / "run").exists()


def test_the_sentence_for_a_device_names_the_reason_without_advice_that_does_not_help(monkeypatch):
  def fail():
    raise RuntimeError("Unable to initialize backend 'tpu': no libtpu.so" + machine._ADVICE)

  monkeypatch.setattr(jax, "local_devices", fail)
  sentence = machine.explain(AssertionError())
  assert " finds no device (Unable to initialize backend 'tpu': no libtpu.so): install " in sentence


@pytest.mark.parametrize(("flags", "has"), [("fpu avx512_bf16 amx_bf16 sse", True), ("fpu amx_bf16x sse", False)])
def test_matrix_instructions_are_read_from_the_processor_s_flags(flags, has, tmp_path):
  (tmp_path / "cpuinfo").write_text(f"model name : amx_bf16\nflags : {flags}\n")
  assert xla._has_amx(str(tmp_path / "cpuinfo")) is has
  assert not xla._has_amx(str(tmp_path / "none"))


@pytest.mark.parametrize("fast", ["float32", "bfloat16"])
def test_auto_becomes_the_dtype_that_is_fast_here(fast, monkeypatch):
  monkeypatch.setattr(xla, "_has_amx", lambda: fast == "bfloat16")
  config = base.get_config("cpu")
  assert config.model.dtype == "auto" and cli.load_config(config).model.dtype == fast
  config.model.dtype = "float32"
  assert cli.load_config(config).model.dtype == "float32"


@pytest.mark.parametrize("recorded", ["float32", "bfloat16"])
def test_a_run_goes_on_in_its_own_dtype_on_another_machine(recorded, tmp_path, monkeypatch):
  monkeypatch.setattr(xla, "_has_amx", lambda: recorded == "float32")  # this machine would choose the other one
  config, workdir = base.get_config("cpu"), Workdir(tmp_path)
  assert cli.load_config(config, workdir.begun).model.dtype != recorded
  config.model.dtype = recorded
  workdir.config.write_text(config_lib.to_json(cli.load_config(config)))
  assert cli.load_config(base.get_config("cpu"), workdir.begun).model.dtype == recorded


def test_accelerators_compute_in_bfloat16_and_cpus_of_several_processes_alike(monkeypatch):
  monkeypatch.setattr(xla, "_has_amx", lambda: True)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert xla.fast_dtype() == "float32"
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert xla.fast_dtype() == "bfloat16"
