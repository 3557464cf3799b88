"""What a run does when it is stopped or damaged: what the user sees, and that nothing is lost."""

import ctypes
import dataclasses
import errno
import gc
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rastp_jax.errors import EXIT_RESUME, InputError
from rastp_jax.experiments import mutations
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.runtime import cli, files, sharding
from rastp_jax.training import checksums, profiling, progress, step
from rastp_jax.training.checkpoint import Checkpoints
from rastp_jax.training.workdir import Workdir
from tests.helpers.training import (
  assert_equal,
  logged,
  newest,
  numbered,
  one_device,
  run,
  saved_params,
  setup_of,
)

ROOT = pathlib.Path(__file__).parent.parent

# These tests take away what Orbax is reading or writing; its event loop is then collected before its futures.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_for_other_tests():
  """What Orbax gave up where files were damaged is collected here, not in whichever test comes later."""
  yield
  gc.collect()


# Being told to stop


def signal_at(number, kind=signal.SIGTERM):
  """Batches that come with a signal when batch `number` is asked for."""

  def batches(upcoming, start):
    for at, batch in numbered(upcoming, start):
      if at == number:
        os.kill(os.getpid(), kind)
      yield batch

  return batches


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_the_run_goes_on(tmp_path, reference, number):
  result = run(tmp_path, batches=signal_at(7, number))
  assert (result.step, result.interrupted, result.reason) == (8, True, f"stopped by {number.name}")
  assert newest(tmp_path) == 8 and not (tmp_path / "summary.json").exists()
  assert run(tmp_path).step == 12
  assert logged(tmp_path) == logged(reference)
  assert_equal(saved_params(tmp_path).params, saved_params(reference).params)


def test_a_signal_during_an_evaluation_leaves_it_for_the_next_start(tmp_path):
  """The evaluation of step 4 is cut short, and done by the run that goes on; early stopping counts it once."""
  seen = []

  def evaluate(model):
    seen.append(float(jnp.sum(model.bos[...])))
    if len(seen) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)
    return {"recall@5": 0.1}

  changes = {"train__length": "6 steps", "train__eval_every": "2 steps"}
  result = run(tmp_path, evaluate, **changes)
  assert (result.step, result.interrupted) == (4, True) and len(seen) == 2
  result = run(tmp_path, evaluate, **changes)
  assert (result.step, result.interrupted) == (6, False)
  assert seen[1] == seen[2] and len(seen) == 4
  assert result.best.evaluations_since_best == 2
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines if "validation/recall@5" in line] == [2, 4, 6]


def test_a_signal_just_before_an_evaluation_leaves_it_for_the_next_start(tmp_path, monkeypatch):
  """As while the loop waits for the devices to finish their steps."""
  doing, evaluated = progress.Progress.doing, []

  def signalled(self, text, **options):
    if text.startswith("validating"):
      os.kill(os.getpid(), signal.SIGTERM)
    return doing(self, text, **options)

  def evaluate(model):
    del model
    evaluated.append(0.1)
    return {"recall@5": 0.1}

  monkeypatch.setattr(progress.Progress, "doing", signalled)
  result = run(tmp_path, evaluate, train__eval_every="2 steps")
  assert (result.step, result.interrupted, evaluated) == (2, True, [])
  monkeypatch.undo()
  assert run(tmp_path, evaluate, train__eval_every="2 steps").step == 12 and len(evaluated) == 6


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["in the last step", "in the last validation"])
def test_a_run_that_is_stopped_at_its_end_finishes_at_the_next_start(tmp_path, monkeypatch, capsys, stopped):
  """Its last step is saved before the last validation, which is the best, and again after it."""
  settings = {"train__eval_every": "5 steps", "train__keep_checkpoints": 1, "train__length": "10 steps"}
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  scores, validated = {}, []

  def evaluate(model):
    validated.append(float(jnp.sum(model.bos[...])))
    if stopped == "in the last validation" and len(validated) == 4:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)
    return {"recall@5": scores.setdefault(validated[-1], 0.1 * (len(scores) + 1))}

  run(whole, evaluate, **settings)
  result = run(broken, evaluate, batches=signal_at(9) if stopped == "in the last step" else None, **settings)
  assert (result.step, result.interrupted, result.best.best_step) == (10, True, 5)
  assert not (broken / "summary.json").exists() and saved_params(broken).step == 5

  write_atomic = files.write_atomic
  full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  refuse = lambda path, content: fail(full) if path.name == "metadata" else write_atomic(path, content)
  monkeypatch.setattr(files, "write_atomic", refuse)
  with pytest.raises(InputError, match="The checkpoint of step 10 could not be written .*No space left on device"):
    run(broken, evaluate, **settings)
  monkeypatch.undo()
  assert not (broken / "summary.json").exists() and saved_params(broken).step == 5

  best = run(broken, evaluate, **settings).best
  assert (best.best_step, best.best) == (10, 0.2) and saved_params(broken).step == 10
  summary = json.loads((broken / "summary.json").read_text())
  assert summary["best"]["best_step"] == 10
  assert "step_bytes" not in summary  # it compiled no step: unknown, not 0
  count = len(validated)
  capsys.readouterr()
  assert run(broken, evaluate, **settings).best == best and len(validated) == count
  assert capsys.readouterr().out.startswith("This run is finished: all 10 steps are done")
  for workdir in (whole, broken):  # sums of the last interval are not logged twice
    run(workdir, evaluate, **settings | {"train__length": "14 steps"})
  assert logged(broken) == logged(whole) and list(logged(whole)) == [3, 5, 6, 9, 10, 12, 14]
  assert_equal(saved_params(broken).params, saved_params(whole).params)


def fail(error):
  raise error


def test_a_checkpoint_that_orbax_leaves_out_is_told(tmp_path, reference):
  """It takes no step before the latest; of the latest itself, only scalars can be saved again."""
  shutil.copytree(reference, tmp_path / "run")
  setup = setup_of()
  with Workdir(tmp_path / "run").claim(setup.config, setup.lengths, setup.fingerprints) as checkpoints:
    tree, saved = checkpoints.restore(setup.saved_shapes)
    with pytest.raises(RuntimeError, match="Orbax left out the checkpoint of step 11"):
      checkpoints.save(11, tree, dataclasses.replace(saved, step=11))
    changed = {**tree, "params": jax.tree.map(lambda leaf: leaf + 1, tree["params"])}
    with pytest.raises(ValueError, match="step 12 is saved already, with other values of params/"):
      checkpoints.save(12, changed, saved)


def storm(times: int = 3) -> None:
  """All signals that request a stop, several times."""
  for number in [signal.SIGTERM, signal.SIGINT] * times:
    os.kill(os.getpid(), number)


def test_repeated_signals_wait_for_the_last_save(tmp_path, monkeypatch, reference):
  before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
  waiting, stormed = Checkpoints.wait, []

  def wait(checkpoints):
    if checkpoints._last == 8:
      storm()
      stormed.append(True)
    waiting(checkpoints)

  monkeypatch.setattr(Checkpoints, "wait", wait)
  result = run(tmp_path, batches=signal_at(7))
  assert stormed
  assert (result.step, result.interrupted) == (8, True) and newest(tmp_path) == 8
  monkeypatch.undo()
  assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
  assert run(tmp_path).step == 12
  assert logged(tmp_path) == logged(reference)


def test_repeated_signals_while_a_step_is_compiled_or_an_evaluation_is_cut_short(tmp_path):
  def batches(upcoming, start):
    for at, batch in numbered(upcoming, start):
      if at == start:  # the next thing is to compile
        storm()
      yield batch

  assert run(tmp_path / "compiling", batches=batches).reason == "stopped by SIGTERM"
  assert newest(tmp_path / "compiling") == 1

  def evaluate(model):
    del model
    try:
      storm()
    finally:
      storm()
    raise AssertionError

  result = run(tmp_path / "evaluating", evaluate, train__eval_every="2 steps")
  assert (result.step, result.interrupted) == (2, True) and newest(tmp_path / "evaluating") == 2


def test_a_signal_between_the_last_checkpoint_and_the_summary_loses_neither(tmp_path, monkeypatch):
  write_json = files.write_json
  monkeypatch.setattr(files, "write_json", lambda *arguments: (storm(), write_json(*arguments)))
  assert not run(tmp_path).interrupted
  summary = json.loads((tmp_path / "summary.json").read_text())
  (tmp_path / "summary.json").unlink()  # as after `kill -9` there
  monkeypatch.undo()
  assert run(tmp_path).step == 12
  again = json.loads((tmp_path / "summary.json").read_text())
  assert {**summary, "seconds": 0, "samples_per_second": 0} == {
    **again,
    "seconds": 0,
    "samples_per_second": 0,
    "step_bytes": summary["step_bytes"],
  }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_imports_ends_the_command_with_code_75(number):
  process = subprocess.Popen(
    [sys.executable, "-m", "rastp_jax.train", "--config=configs/tiny.py"], cwd=ROOT, stderr=subprocess.PIPE
  )
  status = pathlib.Path(f"/proc/{process.pid}/status")
  deadline = time.monotonic() + 60
  while not listens(status.read_text()) and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(number)
  _, said = process.communicate(timeout=60)
  assert process.returncode == EXIT_RESUME and number.name in said.decode() and b"Traceback" not in said


def listens(status: str) -> bool:
  """Whether a process has a handler of its own for SIGTERM, which Python has not."""
  return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signal.SIGTERM - 1) & 1)


# Numbers that are not finite


def test_a_step_that_is_not_finite_changes_nothing(tmp_path, capsys):
  run(tmp_path, batches=poison({5}))
  assert (
    "WARNING: 1 steps up to step 5 had a NaN or infinite loss or gradient and were skipped." in capsys.readouterr().out
  )
  lines = {line["step"]: line for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())}
  assert lines[6]["skipped_steps"] == 1 and np.isfinite(lines[6]["loss"]) and "skipped_steps" not in lines[9]
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved_params(tmp_path).params))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_single_steps_that_are_not_finite_stop_no_run_and_the_rate_waits_for_them(tmp_path, accumulated):
  """Three of them, of which two in a row were too many; the logged rate is that of the last update that was made."""
  settings = {"max_nonfinite_steps": 1, "schedule": "cosine", "warmup": "0 steps", "learning_rate": 2.0}
  settings = {f"train__{name}": value for name, value in settings.items()}
  result = run(tmp_path, batches=poison({2, 5, 8}), train__grad_accumulation_steps=accumulated, **settings)
  assert result.step == 12
  rate = lambda update: 1.0 + np.cos(np.pi * update / (12 // accumulated))
  made = {3: 2, 6: 4, 9: 6, 12: 9}  # steps that were not skipped
  expected = [rate(max(made[step] // accumulated - 1, 0)) for step in (3, 6, 9, 12)]
  np.testing.assert_allclose(list(logged(tmp_path, "learning_rate").values()), expected, rtol=1e-5)


@pytest.mark.slow
def test_too_many_of_them_in_a_row_stop_the_run_with_the_weights_of_before(tmp_path):
  with pytest.raises(
    InputError, match=r"NaN or infinite from step 6 to 9, more than config.train.max_nonfinite_steps=2 .* as step 12 in"
  ):
    run(tmp_path, batches=poison(range(6, 100)), train__max_nonfinite_steps=2, train__length="40 steps")
  run(tmp_path / "five", train__length="5 steps")
  assert_equal(saved_params(tmp_path).params, saved_params(tmp_path / "five").params)
  assert run(tmp_path, train__max_nonfinite_steps=2, train__length="40 steps").step == 40  # goes on behind them


@pytest.mark.parametrize(("seconds", "last"), [(0.0, 99), (0.5, 99), (0.0, 9)])
def test_they_stop_the_run_at_a_step_that_no_thread_decides(tmp_path, monkeypatch, seconds, last):
  """Of several processes one may read an interval's numbers sooner than another: both stop at the end of the next."""

  def batches(upcoming, start):
    for batch in poison(range(6, last + 1))(upcoming, start):
      time.sleep(0.05)
      yield batch

  read = progress.Progress._read
  monkeypatch.setattr(progress.Progress, "_read", lambda *arguments: (time.sleep(seconds), read(*arguments))[1])
  with pytest.raises(InputError, match=r"from step 6 to 9, more than .* as step 12 in"):
    run(tmp_path, batches=batches, train__max_nonfinite_steps=2, train__length="40 steps")
  assert newest(tmp_path) == 12


def poison(steps):
  """Batches of which those of these steps (from 1) have an infinite weight."""

  def batches(upcoming, start):
    for number, batch in numbered(upcoming, start + 1):
      real = batch["weight"] > 0
      yield {**batch, "weight": np.where(real, np.inf, 0.0).astype(np.float32)} if number in steps else batch

  return batches


# Disks and files


def test_a_second_trainer_on_the_same_workdir_is_refused(tmp_path):
  sentence = rf"Process {os.getpid()} on \S+ is writing to {tmp_path}: wait until it ends"
  workdir = Workdir(tmp_path)
  with workdir.claim(make_config(), (6,), {}), pytest.raises(InputError, match=sentence):
    run(tmp_path)
  workdir.lock.write_text('{"host": "elsewhere", "pid": 1}')  # left over by a process that died
  with workdir.claim(make_config(), (6,), {}):
    assert json.loads(workdir.lock.read_text())["pid"] == os.getpid()


def shards(directory):
  """The files that hold the parameters' numbers."""
  return [path for path in (directory / "params").rglob("*") if path.is_file() and path.parent.name == "d"]


def remove(directory):
  max(shards(directory), key=lambda path: path.stat().st_size).unlink()


def flip(directory):
  largest = max(shards(directory), key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  for place in range(0, len(content), len(content) // 16):  # a single one may fall where nothing is stored
    content[place] ^= 1
  largest.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, remove])
def test_damaged_checkpoints_are_found(tmp_path, reference, damage):
  run(tmp_path, train__length="10 steps")
  damage(tmp_path / "checkpoints" / "10")
  with pytest.raises(InputError, match=r"best checkpoint in .*, of step 10, cannot be read"):
    saved_params(tmp_path)
  with pytest.warns(UserWarning, match=r"The checkpoint of step 10 cannot be read .*; going on from step 5\."):
    assert run(tmp_path).step == 12
  assert logged(tmp_path) == logged(reference)


def test_settings_of_another_size_are_told_without_a_traceback(tmp_path, reference, capfd):
  shutil.copytree(reference, tmp_path / "run")
  path = tmp_path / "run" / "config.json"
  values = json.loads(path.read_text())
  values["model"]["d_model"] *= 2
  path.write_text(json.dumps(values))
  with pytest.raises(InputError, match=r"of step 12, cannot be read .*has the shape .* by the settings of config.json"):
    saved_params(tmp_path / "run")
  assert "Traceback" not in capfd.readouterr().err


def edit_progress(workdir, step, *, checksum=True, **changes):
  """Changes values in a checkpoint's progress; without checksum as versions before 0.2 wrote it."""
  path = workdir / "checkpoints" / str(step) / "progress" / "metadata"
  values = json.loads(path.read_text()) | changes
  if not checksum:
    del values["checksum"]
  path.write_text(json.dumps(values))


@pytest.mark.parametrize("change", [{"next_batch": 5}, {"samples": 3.0}, {"fingerprints": []}, {"pending": 1}])
def test_an_edited_progress_is_found(tmp_path, reference, change):
  """So is what stands in a progress file without a checksum; only what a number should be, nobody can know."""
  shutil.copytree(reference, tmp_path / "run")
  edit_progress(tmp_path / "run", 12, **change)
  with pytest.warns(UserWarning, match="step 12 cannot be read"):
    assert saved_params(tmp_path / "run").step == 10
  edit_progress(tmp_path / "run", 12, checksum=False)
  if "samples" not in change:
    with pytest.warns(UserWarning, match="step 12 cannot be read"):
      assert saved_params(tmp_path / "run").step == 10


def test_checkpoints_of_versions_without_a_checksum_are_read(tmp_path, reference):
  shutil.copytree(reference, tmp_path / "run")
  edit_progress(tmp_path / "run", 12, checksum=False)
  assert saved_params(tmp_path / "run").step == 12


def test_a_checkpoint_under_the_name_of_another_is_found(tmp_path, reference):
  shutil.copytree(reference, tmp_path / "run")
  checkpoints = tmp_path / "run" / "checkpoints"
  (checkpoints / "12").rename(checkpoints / "20")
  with pytest.warns(UserWarning, match=r"step 20 cannot be read \(its progress file is of step 12\)"):
    assert run(tmp_path / "run").step == 12
  assert logged(tmp_path / "run") == logged(reference)


def test_a_run_whose_checkpoints_are_gone_is_refused(tmp_path, reference):
  shutil.copytree(reference, tmp_path / "run")
  shutil.rmtree(tmp_path / "run" / "checkpoints")
  with pytest.raises(InputError, match="holds the logs of a run whose checkpoints are missing: put them back"):
    run(tmp_path / "run")
  assert logged(tmp_path / "run") == logged(reference)


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "checkpoints", "unreadable_checkpoints"])
def test_what_is_of_the_wrong_kind_is_refused(tmp_path, name):
  if "." in name:
    (tmp_path / name).mkdir()
  else:
    (tmp_path / name).write_text("")
  with pytest.raises(InputError, match=rf"{name} is not a (file|directory): move it away"):
    run(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_workdir_that_is_removed_during_training(tmp_path):
  def batches(upcoming, start):
    for at, batch in numbered(upcoming, start):
      if at == 6:
        shutil.rmtree(tmp_path / "run")
      yield batch

  with pytest.raises(InputError, match=r"checkpoints is gone \(it was removed or moved during training\)"):
    run(tmp_path / "run", batches=batches, train__checkpoint_every="100 steps")
  assert not (tmp_path / "run").exists()


def test_logs_that_may_no_longer_be_written(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(tmp_path / "metrics.jsonl"))

  monkeypatch.setattr(progress.Progress, "_write_json", refuse)
  with pytest.raises(InputError, match=r"metrics.jsonl cannot be written \(Operation not permitted\): make room"):
    run(tmp_path)


def test_what_libraries_log_is_one_line():
  """As Orbax logs a full disk, before the sentence."""
  try:
    raise OSError("full")
  except OSError:
    record = logging.LogRecord("absl", logging.ERROR, "/orbax/future.py", 1, "failed: %s\nmore", ("x",), sys.exc_info())
  assert cli._ours_or_serious(record)
  assert logging.Formatter().format(record) == "failed: x"


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 4 MB, where the system lets us mount one."""
  place = tmp_path / "small"
  place.mkdir()
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=4m"):
    pytest.skip("mounting a tmpfs is not allowed here")
  yield place
  libc.umount2(str(place).encode(), 2)


def fill(place, leave):
  free = os.statvfs(place).f_bavail * os.statvfs(place).f_bsize
  (place / "filler").write_bytes(b"x" * (free - leave))


def test_a_full_disk_is_told_before_training_and_spares_the_last_checkpoint(small_disk, reference):
  workdir = small_disk / "run"
  run(workdir, train__length="5 steps")
  fill(small_disk, 60_000)
  with pytest.raises(InputError, match=r"has room for 0.1 MB, less than the 0.\d MB of one checkpoint"):
    run(workdir)
  (small_disk / "filler").unlink()
  fill(small_disk, 90_000)
  with pytest.raises(InputError, match=r"cannot be written|could not be written"):
    run(workdir)
  (small_disk / "filler").unlink()
  assert saved_params(workdir).step == 5
  assert run(workdir).step == 12
  assert_equal(saved_params(workdir).params, saved_params(reference).params)


def test_a_workdir_that_cannot_be_written_is_told_before_training(small_disk):
  read_only, remount = 1, 32  # MS_RDONLY, MS_REMOUNT
  assert not ctypes.CDLL(None).mount(b"tmpfs", str(small_disk).encode(), b"tmpfs", read_only | remount, None)
  with pytest.raises(InputError, match=rf"{small_disk}/run cannot be written \(Read-only file system\): "):
    run(small_disk / "run")


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch, reference):
  real, times = time.time, []
  monkeypatch.setattr(time, "time", lambda: real() - 10 * 365 * 86_400 * len(times))

  def evaluate(model):
    times.append(time.time())
    return {"recall@5": 0.1 * len(times)}

  run(tmp_path, evaluate, train__eval_every="4 steps", train__log_every="1 steps")
  assert len(times) == 3 and times == sorted(times, reverse=True)
  assert_equal(saved_params(tmp_path).params, saved_params(reference).params)
  seconds = list(logged(tmp_path, "seconds").values())
  assert len(seconds) == 12 and seconds == sorted(seconds) and seconds[-1] < 600


# Another mesh, another precision


def test_checkpoints_go_on_on_another_mesh(tmp_path):
  run(tmp_path, train__length="5 steps")
  _, semantic_ids = make_data()
  config = make_config()
  mesh = sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2, 1), sharding.AXES)
  graph, params = step.abstract_model(config, semantic_ids, mesh)
  moved = Workdir(tmp_path).restore_params(params).params
  assert moved["heads"][0]["kernel"].sharding.spec[0] == "fsdp"
  assert_equal(jax.tree.map(np.asarray, moved), jax.tree.map(np.asarray, saved_params(tmp_path).params))
  halves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding), params)
  half = Workdir(tmp_path).restore_params(halves).params["code_embedding"]
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), moved["code_embedding"], rtol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "rastp"])
def test_a_run_goes_on_on_other_numbers_of_devices(tmp_path, method):
  """Only the order in which rows are added up differs: within 24 steps this stays in the last digits."""
  settings = {"reduction__method": method, "train__log_every": "1 steps", "train__checkpoint_every": "12 steps"}
  mesh = lambda devices: sharding.make_mesh(devices=jax.devices()[:devices])
  run(tmp_path / "one", mesh=mesh(1), train__length="24 steps", **settings)
  for devices, length in ((2, "12 steps"), (4, "24 steps")):
    run(tmp_path / "several", mesh=mesh(devices), train__length=length, **settings)
  one, several = (list(logged(tmp_path / name).values()) for name in ("one", "several"))
  assert len(one) == 24
  np.testing.assert_allclose(several, one, rtol=1e-5)


def test_checksums_do_not_depend_on_the_mesh_and_see_every_bit():
  tree = {"a": np.arange(64, dtype=np.float32).reshape(8, 8), "b": np.arange(5, dtype=np.int32)}
  place = lambda tree, mesh, spec: jax.device_put(tree, sharding.NamedSharding(mesh, spec))  # noqa: E731
  one = checksums.take(place(tree, one_device(), sharding.PartitionSpec()))
  mesh = sharding.Mesh(np.array(jax.devices()).reshape(2, 4, 1), sharding.AXES)
  split = {
    "a": place(tree["a"], mesh, sharding.PartitionSpec("data", "fsdp")),
    "b": place(tree["b"], mesh, sharding.PartitionSpec()),
  }
  assert checksums.take(split) == one and set(one) == {"a", "b"}
  for index, bit in ((0, 0), (37, 12), (63, 31)):
    changed = tree["a"].copy()
    changed.view(np.uint32).flat[index] ^= np.uint32(1 << bit)
    other = checksums.take(place({**tree, "a": changed}, one_device(), sharding.PartitionSpec()))
    assert other["a"] != one["a"] and other["b"] == one["b"]


# Whatever a disk does to a workdir


def test_damaged_workdirs_give_a_saved_state_or_a_sentence(tmp_path, reference):
  """The first seeds of `python -m rastp_jax.experiment faults --mutations=500`.

  At least twelve, and as many as it takes to see both outcomes: Orbax gives files random names, so that a seed does not
  always damage the same one.
  """
  shutil.copytree(reference, tmp_path / "run")
  setup = setup_of()
  states = mutations.saved_states(setup, tmp_path / "run")
  assert set(states) == {10, 12}
  seen, wanted = [], {"latest", "earlier"}
  for seed in range(100):
    seen.append(mutations.damage(setup, tmp_path / "run", states, seed)[1])
    if seed >= 11 and wanted <= set(seen):
      break
  assert wanted <= set(seen) <= set(mutations.OUTCOMES)
  assert logged(tmp_path / "run") == logged(reference)


# Watching


@pytest.mark.slow
def test_a_trace_and_a_histogram_of_kept_positions(tmp_path):
  run(tmp_path, lambda model: {"recall@5": 0.1}, profile_steps=(2, 3), train__length="6 steps")
  assert list(Workdir(tmp_path).profile.rglob("*.xplane.pb"))
  events = b"".join(path.read_bytes() for path in Workdir(tmp_path).tensorboard.iterdir())
  assert b"reduction/kept_positions_from_the_newest" in events


@pytest.mark.parametrize(
  ("changes", "kept"),
  [
    ({}, lambda tokens: np.minimum(tokens, 6 * 5 // 3)),
    ({"reduction__method": "recent"}, lambda tokens: np.minimum(tokens, 6 * 5 // 3)),
    ({"reduction__method": "item_mean", "reduction__after_block": (-1,)}, lambda tokens: tokens),  # merged: all survive
  ],
)
def test_kept_positions_count_back_from_the_newest_token(changes, kept):
  setup = setup_of(**changes)
  positions = profiling.make_kept_positions(setup)(setup.fresh_state().params)
  users = np.minimum(np.diff(setup.histories.offsets) - 2, 6)
  assert len(positions) == kept(users * 5).sum()
  assert positions.min() == 0 and positions.max() < 30
  if changes.get("reduction__method") == "recent":
    assert positions.max() == 6 * 5 // 3 - 1


def test_a_dense_model_has_no_kept_positions():
  assert profiling.make_kept_positions(setup_of(reduction__method="none")) is None


@pytest.mark.parametrize("text", ["5", "0:3", "4:3", "a:b", "1:2:3"])
def test_profile_steps_are_checked(text):
  with pytest.raises(InputError, match=r"--profile_steps=.* cannot be read: expected FIRST:LAST"):
    profiling.parse_steps(text)


# Nothing that is read is executed


def test_no_file_is_read_as_code():
  forbidden = re.compile(
    r"\b(import (pickle|dill|cloudpickle|joblib|shelve|marshal)|from (pickle|dill|joblib) |pickle\.|allow_pickle=True"
    r"|(?<![.\w])eval\(|(?<![.\w])exec\(|yaml\.load\(|(?<![\x22])torch\.load|os\.system|shell=True)"
  )
  for path in (ROOT / "rastp_jax").rglob("*.py"):
    for number, line in enumerate(path.read_text().splitlines(), 1):
      assert not forbidden.search(line), f"{path}:{number}: {line}"
      if "np.load(" in line:
        assert "allow_pickle=False" in line or "allow_pickle" not in line  # NumPy's default refuses pickles


def test_a_checkpoint_cannot_name_a_place_outside_its_workdir(tmp_path, reference):
  shutil.copytree(reference, tmp_path / "run")
  for path in (tmp_path / "run" / "checkpoints").glob("*/progress/metadata"):
    progress = json.loads(path.read_text())
    assert progress["best_step"] is None
    path.write_text(json.dumps(progress | {"best_step": "../../elsewhere"}))
  with (
    pytest.warns(UserWarning, match="its progress file is damaged"),
    pytest.raises(InputError, match="no checkpoint"),
  ):
    saved_params(tmp_path / "run")
  with pytest.raises(InputError, match="config.data.dataset='../elsewhere' is not a name for a dataset"):
    make_config(data__dataset="../elsewhere")


def test_an_array_file_with_a_pickle_inside_is_refused(tmp_path):
  class Bomb:
    def __reduce__(self):
      return (pathlib.Path.touch, (tmp_path / "executed",))

  np.save(tmp_path / "codes.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
  with pytest.raises(ValueError, match="pickle"):
    np.load(tmp_path / "codes.npy")
  assert not (tmp_path / "executed").exists()
