"""Several processes as one run, on loopback: the metrics of one process, and nobody waits for one that stopped."""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from rastp_jax.experiments import tiny_run
from rastp_jax.experiments.tiny_run import log, losses
from rastp_jax.serving.recommendation_files import recommend_to_file
from tests.helpers import compiling
from tests.helpers.commands import Forked

ROOT = pathlib.Path(__file__).parent.parent
WAIT = 300  # seconds; a machine that does other things as well may be slow
EVERY_STEP = ("--set=train__log_every=1 steps", "--set=train__eval_every=6 steps")


start = functools.partial(tiny_run.start, xla_flags=compiling.FLAGS, popen=Forked)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("compiled")


def finish(processes) -> list[int]:
  try:
    return [process.wait(WAIT) for process in processes]
  finally:
    for process in processes:
      process.kill()


@pytest.fixture(scope="module")
def one(tmp_path_factory, cache):
  """The workdir of one process with eight devices."""
  workdir = tmp_path_factory.mktemp("one") / "run"
  assert finish(start(workdir, cache, devices=8, arguments=EVERY_STEP)) == [0], log(workdir).read_text()
  return workdir


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path, cache, one):
  two = tmp_path / "run"
  # Not forks, which would hash strings alike.
  codes = finish(start(two, cache, processes=2, devices=4, arguments=EVERY_STEP, popen=subprocess.Popen))
  assert codes == [0, 0], log(two, 1).read_text()
  expected, got = losses(one), losses(two)
  assert list(got) == list(expected) == list(range(1, 13))
  np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=1e-5)
  ours, theirs = (json.loads((workdir / "final.json").read_text()) for workdir in (two, one))
  counts = ("users", "invalid_beams", "repeated_beams", "recall@5", "recall@10", "step")
  assert {name: ours[name] for name in counts} == {name: theirs[name] for name in counts}
  assert "samples/s" in log(two, 0).read_text() and "samples/s" not in log(two, 1).read_text()


@pytest.mark.slow
def test_two_processes_recommend_what_one_does(tmp_path, cache, published_run):
  one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
  arguments = ["--split=test", "-k", "3", f"--workdir={published_run}", f"--output={two}", "--shards=3"]
  started = start(two, cache, processes=2, devices=2, arguments=arguments, module="recommend")
  recommend_to_file(str(published_run), one, k=3)
  assert finish(started) == [0, 0], log(two, 1).read_text()
  shards = [tmp_path / f"two-0000{shard}-of-00003.jsonl" for shard in range(3)]
  texts = [shard.read_text() for shard in shards]
  whole = [json.loads(line) for line in one.read_text().splitlines()]
  joined = [json.loads(line) for line in "".join(texts).splitlines()]
  assert len(joined) == len(whole) == 2000 and all(texts)
  for got, expected in zip(joined, whole, strict=True):
    assert got["user"] == expected["user"]
    got, expected = got["recommendations"], expected["recommendations"]
    assert [item["item_id"] for item in got] == [item["item_id"] for item in expected]
    np.testing.assert_allclose([i["score"] for i in got], [i["score"] for i in expected], rtol=1e-5)
  # What is missing is written again, by however many processes; what is there stays.
  shards[1].unlink()
  before = [shard.stat().st_mtime_ns for shard in (shards[0], shards[2])]
  assert recommend_to_file(str(published_run), two, k=3, shards=3).users == len(texts[1].splitlines())
  assert [json.loads(line)["user"] for line in shards[1].read_text().splitlines()] == [
    json.loads(line)["user"] for line in texts[1].splitlines()
  ]
  assert [shard.stat().st_mtime_ns for shard in (shards[0], shards[2])] == before
  assert not two.exists()


def test_all_processes_stop_with_the_sentence_of_the_one_that_cannot_go_on(tmp_path, cache):
  workdir = tmp_path / "run"
  arguments = [[], ["--set=train__learning_rate=-1.0"]]
  assert finish(start(workdir, cache, processes=2, arguments=arguments)) == [2, 2]
  for process in range(2):
    assert "error: Process 1 of 2: config.train.learning_rate=-1.0 is too small: expected at least 0." in (
      log(workdir, process).read_text()
    )
  assert not workdir.exists()


def test_processes_with_different_settings_or_data_stop(tmp_path, cache):
  for number, (own, sentence) in enumerate(
    [
      (["--set=train__seed=5"], "Process 1 has config.train.seed 5, but process 0 has 999: start all"),
      (["--data_seed=1"], "Process 1 has semantic IDs "),
    ]
  ):
    workdir = tmp_path / str(number)
    assert finish(start(workdir, cache, processes=2, arguments=[[], own])) == [2, 2]
    for process in range(2):
      assert sentence in log(workdir, process).read_text()
    assert not workdir.exists()


ALONE = """
from rastp_jax.errors import InputError
from rastp_jax.runtime import cli, processes
cli.define_host_flags()
cli.GRACE_SECONDS = 3
def main():
  import jax
  jax.devices()
  if jax.process_index() == 0:
    raise InputError("the disk is full.")
  processes.allgather_text("")
cli.run(main)
"""


def test_a_mistake_that_one_process_finds_alone_ends_all(tmp_path):
  """It does not wait for the others, which wait for it."""
  (tmp_path / "alone.py").write_text(ALONE)
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, tmp_path / "alone.py", f"--coordinator_address={address}", "--num_processes=2"]
  processes = [
    subprocess.Popen([*command, f"--process_id={i}"], env=environment, stderr=subprocess.PIPE, text=True)
    for i in range(2)
  ]
  began = time.monotonic()
  try:
    told = [process.communicate(timeout=WAIT)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert time.monotonic() - began < 90
  assert processes[0].returncode == 2 and told[0].splitlines()[-1] == "error: the disk is full."
  assert processes[1].returncode not in (0, 2)


@pytest.mark.slow
def test_a_lost_process_ends_the_other_within_a_minute(tmp_path, cache):
  workdir = tmp_path / "run"
  long = ("--set=train__length=1000000 steps", "--set=train__checkpoint_every=5 steps")
  processes = start(workdir, cache, processes=2, arguments=long)
  try:
    until(lambda: (workdir / "checkpoints" / "5").exists())
    processes[1].kill()
    killed = time.monotonic()
    assert processes[0].wait(WAIT) not in (0, 2)
    assert time.monotonic() - killed < 60
  finally:
    finish([process for process in processes if process.poll() is None and not process.kill()])
  text = log(workdir).read_text()
  assert "error: Process 0 lost another process of this run (" in text or "another task died" in text


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step_and_they_go_on(tmp_path, cache, one):
  workdir = tmp_path / "run"
  long = ("--set=train__log_every=1 steps", "--set=train__length=40 steps", "--set=train__eval_every=40 steps")
  processes = start(workdir, cache, processes=2, arguments=long)
  until(lambda: (workdir / "metrics.jsonl").exists() and len(losses(workdir)) >= 2)
  processes[1].send_signal(signal.SIGTERM)
  assert finish(processes) == [75, 75], log(workdir).read_text()
  stopped = len(losses(workdir))
  assert 2 <= stopped < 40
  assert finish(start(workdir, cache, processes=2, arguments=long)) == [0, 0]
  got, expected = losses(workdir), losses(one)
  assert list(got) == list(range(1, 41))
  np.testing.assert_allclose([got[number] for number in expected], list(expected.values()), rtol=1e-5)


CUT = """
import pathlib, sys
import jax, numpy as np
from rastp_jax.config import MeshConfig
from rastp_jax.runtime import processes, sharding
from rastp_jax.training.checkpoint import Checkpoints
from rastp_jax.training.plan import SavedProgress

directory, port, process = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
processes.join(f"localhost:{port}", 2, process)
mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2))

def placed(name, values):
  return jax.make_array_from_callback(values.shape, sharding.placement(name, values.shape, mesh), lambda at: values[at])

def saved(step):
  half = placed("item_embedding", np.random.default_rng(step).normal(size=(256, 256)).astype(np.float32))
  return {"params": {"item_embedding": half}, "rest": {"key": placed("key", np.full(2, step, np.uint32))}}

def checkpoints():
  return Checkpoints(directory / "checkpoints", directory / "bad", keep=2, origin={"fingerprints": {}})

with checkpoints() as writing:
  for step in (2, 4):
    writing.save(step, saved(step), SavedProgress(step))
if process == 0:
  of_the_other = directory / "checkpoints" / "4" / "params" / "ocdbt.process_1" / "d"
  largest = max(of_the_other.iterdir(), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
processes.allgather_text("")
with checkpoints() as reading:
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), saved(0))
  arrays, progress = reading.restore(shapes)
jax.tree.map(lambda got, expected: np.testing.assert_array_equal(
  got.addressable_shards[0].data, expected.addressable_shards[0].data), arrays, saved(2))
print("restored", progress.step)
"""


def test_a_checkpoint_that_one_process_cannot_read_is_set_aside_by_both(tmp_path):
  """Each holds and reads half of an array, and one half is cut."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = str(free.getsockname()[1])
  environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": str(ROOT)}
  commands = [[sys.executable, "-c", CUT, str(tmp_path), port, process] for process in "01"]
  both = [
    subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for command in commands
  ]
  said = [process.communicate(timeout=WAIT)[0] for process in both]
  assert finish(both) == [0, 0] and all("restored 2" in text for text in said), said
  assert "The checkpoint of step 4 cannot be read (" in said[0]
  assert [path.name for path in (tmp_path / "bad").iterdir()] == ["4"]


def until(condition) -> None:
  deadline = time.monotonic() + WAIT
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)
