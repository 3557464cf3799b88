"""Runs and data in a bucket (gs://), on a server of this machine that speaks as much of the API as is needed."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import threading
import time
import unittest.mock

import numpy as np
import pytest
from flax import nnx

from rastp_jax.config import DataConfig
from rastp_jax.data.sources import detect
from rastp_jax.errors import InputError
from rastp_jax.evaluation import results
from rastp_jax.runtime import buckets, files
from rastp_jax.training import import_torch_weights, runs, trainer
from rastp_jax.training.checkpoint import Checkpoints
from rastp_jax.training.setup import make_setup
from rastp_jax.training.workdir import Workdir
from tests.helpers import bucket as bucket_server
from tests.helpers import training
from tests.helpers.results import make_result

# gcsfs's own way of sending.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")


@pytest.fixture(scope="module")
def server():
  """The server, and this process told of it. Libraries read where it is once: all tests of this file share it."""
  with bucket_server.serve() as serving, pytest.MonkeyPatch.context() as patch:
    for name, value in serving.environment().items():
      patch.setenv(name, value)
    yield serving


@pytest.fixture(autouse=True)
def empty(server):
  server.objects.clear()
  another_machine()


def another_machine() -> None:
  """Forgets everything local, as where a run goes on elsewhere."""
  shutil.rmtree(buckets._root())
  buckets._root().mkdir()
  for known in (buckets._copied, buckets._uploaded, buckets._uploaded_at):
    known.clear()


def test_files_are_written_whole_and_read_again(server):
  files.write_json("gs://bucket/a/b.json", {"one": 1})
  large = np.random.default_rng(0).bytes(9 << 20)  # sent in pieces
  files.write_atomic("gs://bucket/a/large", large)
  assert server.names() == ["a/b.json", "a/large"]
  another_machine()
  assert files.read_json("gs://bucket/a/b.json", "") == {"one": 1}
  assert files.check_path("gs://bucket/a/large").read_bytes() == large
  assert buckets.shown(files.check_path("gs://bucket/a/large")) == "gs://bucket/a/large"


def test_what_fails_on_the_way_leaves_the_object_as_it_was(server):
  files.write_atomic("gs://bucket/a", "before")
  with contextlib.suppress(KeyError), files.open_atomic("gs://bucket/a") as file:
    file.write(b"half")
    raise KeyError
  assert server.objects["bucket", "a"][1] == b"before"


def test_a_new_directory_appears_once_it_is_whole(server):
  with files.new_directory("gs://bucket/export") as place:
    files.write_json(place / "a.json", {"one": 1})
    (place / "b").write_text("two")
    assert server.names() == []
  assert server.names() == ["export/a.json", "export/b"]
  with contextlib.suppress(KeyError), files.new_directory("gs://bucket/other") as place:
    files.write_json(place / "a.json", {"one": 1})
    raise KeyError
  assert server.names() == ["export/a.json", "export/b"]


def test_a_new_directory_that_cannot_be_written_is_refused_before_the_work(server, monkeypatch):
  monkeypatch.setattr(buckets._files(), "pipe_file", unittest.mock.Mock(side_effect=PermissionError("forbidden")))
  sentence = r"gs://bucket/export cannot be reached \(forbidden\)"
  with pytest.raises(InputError, match=sentence), files.new_directory("gs://bucket/export"):
    pytest.fail("this is the work")


def test_slashes_at_the_beginning_are_one(server):
  files.write_json("gs://bucket/a/b.json", {"one": 1})
  another_machine()
  assert files.read_json("gs://bucket//a/b.json", "") == {"one": 1}


def test_what_is_large_is_not_copied_with_the_directories_above_it(server):
  for name in ("config.json", "checkpoints/5/weights", "profile/trace"):
    files.write_atomic(f"gs://bucket/runs/beauty/{name}", name)
  another_machine()
  copied = [path for path in files.check_path("gs://bucket/runs").rglob("*") if path.is_file()]
  assert [path.name for path in copied] == ["config.json"]
  assert files.check_path("gs://bucket/runs/beauty/checkpoints/5/weights").is_file()
  assert not files.check_path("gs://bucket/runs/beauty/profile/none").exists()


@pytest.mark.parametrize("path", ["gs:/bucket/x", "s3://bucket/x", "gs://", "file:///x", "hdfs://host/x"])
def test_paths_of_other_kinds_are_refused_and_make_no_folder(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for use in (files.check_path, files.check_writable, Workdir, lambda path: files.below(path, "x")):
    with pytest.raises(InputError, match="cannot be used: paths are local or in Google Cloud Storage, like gs://"):
      use(path)
  with pytest.raises(InputError, match="cannot be used"):
    detect.prepare_dataset(DataConfig("synthetic", path))
  assert not list(tmp_path.iterdir())


def test_a_bucket_that_cannot_be_reached_is_a_sentence():
  for use in (files.check_path, files.check_writable, Workdir):
    with pytest.raises(InputError, match="gs://nosuch/x cannot be reached .*: check the bucket's name"):
      use("gs://nosuch/x")


def test_without_the_package_the_sentence_names_it(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
  buckets._files.cache_clear()
  with pytest.raises(InputError, match=r"need the package gcsfs: install it by `pip install 'rastp_jax\[gcs\]'`"):
    files.check_path("gs://bucket/new")


def test_one_process_at_a_time(server, monkeypatch, capsys):
  monkeypatch.setattr(buckets, "_RENEWED", 0.1)
  monkeypatch.setattr(buckets, "_DEAD", 2.0)
  with files.directory_lock("gs://bucket/run", "lock"):
    assert json.loads(server.objects["bucket", "run/lock"][1])["pid"] == os.getpid()
    with pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing to gs://bucket/run: wait until"):  # noqa: SIM117
      with files.directory_lock("gs://bucket/run", "lock"):
        pass
    assert "waiting 2 s for a sign of it" in capsys.readouterr().err
  assert server.names() == []


@pytest.mark.parametrize(
  ("owner", "waits"),
  [
    ({"host": "elsewhere", "pid": 1}, True),
    ({"host": os.uname().nodename, "pid": 2**22 + 1}, False),
    ("not JSON", True),
  ],
)
def test_a_lock_that_was_left_behind_is_taken_over(server, monkeypatch, owner, waits):
  monkeypatch.setattr(buckets, "_DEAD", 1.5)
  files.write_atomic("gs://bucket/run/lock", json.dumps(owner))
  start = time.monotonic()
  with files.directory_lock("gs://bucket/run", "lock"):
    assert (time.monotonic() - start > 1.4) == waits
    assert json.loads(server.objects["bucket", "run/lock"][1])["pid"] == os.getpid()


@pytest.fixture
def ended(monkeypatch):
  """Exit codes of a lock that would have ended this process."""
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  monkeypatch.setattr(buckets, "_RENEWED", 0.1)
  return codes


def test_a_renewal_whose_answer_is_lost_is_still_a_renewal(server, ended):
  with files.directory_lock("gs://bucket/run", "lock"):
    server.losing.add("run/lock")
    lost = wait_for_renewal(server, after=server.objects["bucket", "run/lock"][0])
    wait_for_renewal(server, after=lost)
    assert not server.losing
  assert ended == [] and server.names() == []


def test_a_lock_that_another_process_took_over_ends_this_one(server, ended):
  owner = json.dumps({"host": os.uname().nodename, "pid": os.getpid(), "lease": "another"}).encode()
  with files.directory_lock("gs://bucket/run", "lock"):
    server.write("bucket", "run/lock", owner, {})
    until = time.monotonic() + 60
    while not ended and time.monotonic() < until:
      time.sleep(0.05)
  assert set(ended) == {75} and server.objects["bucket", "run/lock"][1] == owner


def wait_for_renewal(server, after):
  """The generation of a lock that was written after another one."""
  until = time.monotonic() + 60
  while server.objects["bucket", "run/lock"][0] <= after:
    assert time.monotonic() < until
    time.sleep(0.05)
  return server.objects["bucket", "run/lock"][0]


def test_of_several_that_come_at_once_one_gets_the_lock(server, monkeypatch):
  monkeypatch.setattr(buckets, "_RENEWED", 0.1)
  monkeypatch.setattr(buckets, "_DEAD", 1.5)
  held, refused, ready = [], [], threading.Barrier(4)

  def enter():
    ready.wait()
    try:
      with buckets.lock(buckets.epath.Path("gs://bucket/run/lock")):
        held.append(1)
        time.sleep(3)
    except InputError as error:
      refused.append(str(error))

  threads = [threading.Thread(target=enter) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == 1 and len(refused) == 3


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_elsewhere_as_if_nothing_had_happened(
  server, reference, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  workdir = "gs://bucket/runs/one"
  for batch in (4, 8):  # in the middle of a log interval, and before and after the checkpoint of step 5
    with pytest.raises(training.Died):
      training.run(workdir, batches=training.die_at(batch))
    another_machine()
  training.run(workdir)
  said = " ".join(capsys.readouterr().out.split())
  assert f"checkpoint {workdir}/checkpoints/12 " in said and f"--workdir={workdir}" in said and "/tmp" not in said
  another_machine()
  assert training.logged(workdir) == training.logged(reference)
  training.assert_equal(training.saved_params(workdir).params, training.saved_params(reference).params)
  assert json.loads(server.objects["bucket", "runs/one/summary.json"][1])["steps"] == 12
  names = server.names()
  assert "runs/one/config.json" in names and "runs/one/lock" not in names
  assert sum(name.startswith("runs/one/tensorboard/") for name in names) == 3  # a file per start
  assert any(name.startswith("runs/one/checkpoints/12/params/") for name in names)
  result = make_result("one", np.zeros(4, np.int32))
  results.save(Workdir(workdir).evaluation("test"), result)
  another_machine()
  assert results.load(Workdir(workdir).evaluation("test"), "one").metrics == result.metrics
  assert str(Workdir(workdir)) == workdir and not list(tmp_path.iterdir())


def test_a_run_that_is_made_longer_has_no_summary_there(server):
  training.run("gs://bucket/run", train__length="2 steps")
  assert ("bucket", "run/summary.json") in server.objects
  with pytest.raises(training.Died):
    training.run("gs://bucket/run", train__length="3 steps", batches=training.die_at(2))
  assert ("bucket", "run/summary.json") not in server.objects and ("bucket", "run/config.json") in server.objects


@pytest.mark.slow
def test_what_others_write_until_a_run_has_the_lock_is_kept(server):
  """Its copy of the directory is made again, but for what this process has written since."""
  workdir = Workdir("gs://bucket/run")
  training.run(workdir.path, train__length="2 steps")
  lines = server.objects["bucket", "run/metrics.jsonl"][1]
  (workdir.path / "notes.txt").write_text("mine")
  other = lambda name, data: server.write("bucket", f"run/{name}", data, {})
  other("notes.txt", b"theirs")
  other("metrics.jsonl", lines + b'{"step": 2}\n')
  other("eval_test.json", b"{}")
  server.delete("bucket", "run/summary.json", {})
  setup = training.setup_of(train__length="2 steps")
  with workdir.claim(setup.config, setup.lengths, setup.fingerprints):
    assert workdir.log.read_bytes() == lines + b'{"step": 2}\n' and workdir.evaluation("test").exists()
    assert not workdir.summary.exists() and (workdir.path / "notes.txt").read_text() == "mine"
  other("config.json", server.objects["bucket", "run/config.json"][1].replace(b'"seed": ', b'"seed": 1'))
  with (
    pytest.raises(InputError, match=r"config\.semantic_ids\.seed=1"),
    workdir.claim(setup.config, setup.lengths, setup.fingerprints),
  ):
    pass


@pytest.mark.slow
def test_weights_are_imported_into_a_bucket(server, published_run):
  saved, weights = runs.load_model(published_run), np.load(published_run.parent / "weights.npz")
  given = saved.config, saved.histories, saved.semantic_ids, weights, "gs://bucket/runs/published", "weights.npz"
  import_torch_weights.import_weights(*given)
  assert all(name.startswith("runs/published/") for name in server.names())
  another_machine()
  there = runs.load_model("gs://bucket/runs/published")
  assert (there.step, there.config) == (0, saved.config)
  training.assert_equal(nnx.state(there.model), nnx.state(saved.model))
  del server.objects["bucket", "runs/published/config.json"], server.objects["bucket", "runs/published/imported.json"]
  another_machine()
  with pytest.raises(InputError, match="gs://bucket/runs/published exists and is not empty: choose a new directory"):
    import_torch_weights.import_weights(*given)


def test_an_import_into_a_bucket_that_was_killed_is_not_trained(server, published_run, monkeypatch):
  saved, weights = runs.load_model(published_run), np.load(published_run.parent / "weights.npz")
  given = saved.config, saved.histories, saved.semantic_ids
  with monkeypatch.context() as patch, pytest.raises(training.Died):
    patch.setattr(Checkpoints, "save", unittest.mock.Mock(side_effect=training.Died))
    import_torch_weights.import_weights(*given, weights, "gs://bucket/published", "weights.npz")
  another_machine()
  with pytest.raises(InputError, match="gs://bucket/published holds imported.json but no checkpoint"):
    trainer.train(make_setup(*given), Workdir("gs://bucket/published"))


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(server):
  workdir = "gs://bucket/run"
  training.run(workdir, train__keep_checkpoints=2)
  another_machine()
  damaged = next(name for name in server.names() if name == "run/checkpoints/12/progress/metadata")
  server.objects["bucket", damaged] = (10**9, b"{")
  with pytest.warns(UserWarning, match="checkpoint of step 12 cannot be read .* in gs://bucket/run/unreadable"):
    training.run(workdir, train__keep_checkpoints=2)
  assert any(name.startswith("run/unreadable_checkpoints/12/") for name in server.names())
  assert training.newest(workdir) == 12 and list(training.logged(workdir)) == [3, 6, 9, 12]


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_stopped_in_its_last_validation_ends_elsewhere(server):
  """The progress of its last checkpoint is written twice."""
  validated = []

  def evaluate(model):
    del model
    validated.append(0.5)
    if len(validated) == 1:
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)
    return {"recall@5": validated[-1]}

  ends = []
  for _ in range(3):
    ends.append(training.run("gs://bucket/run", evaluate, train__length="2 steps"))
    another_machine()
  assert [end.interrupted for end in ends] == [True, False, False] and len(validated) == 2
  assert ends[1].best == ends[2].best and ends[2].best.best_step == training.saved_params("gs://bucket/run").step == 2


def test_data_are_prepared_in_a_bucket_and_found_elsewhere(server, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  rows = "".join(f"u{u},i{k},{k}\n" for u in range(3) for k in range(4))
  files.write_atomic("gs://bucket/raw/interactions.csv", "user,item,timestamp\n" + rows)
  another_machine()
  config = DataConfig("mine", "gs://bucket/data", k_core=1)
  made, _ = detect.prepare_dataset(config, "gs://bucket/raw")
  assert "gs://bucket/data/review_histories/mine" in buckets.shown(made.histories_dir)
  another_machine()
  found, _ = detect.prepare_dataset(config)
  assert found.reused and found.item_ids == ["i0", "i1", "i2", "i3"] and found.num_users == 3
  table = "data/review_items/mine/1.0.0/"
  assert {name.partition("/")[0] for name in server.names()} == {"data", "raw"}
  del server.objects["bucket", f"{table}dataset_info.json"]  # the last one: a process was killed before it
  another_machine()
  again, _ = detect.prepare_dataset(config, "gs://bucket/raw")
  assert not again.reused and f"{table}dataset_info.json" in server.names() and not list(tmp_path.iterdir())


def test_copies_of_processes_that_were_killed_go(tmp_path, monkeypatch):
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  buckets._root.cache_clear()
  host, killed = f"rastp_jax_bucket_{os.uname().nodename}", 2**22 + 1
  elsewhere = f"rastp_jax_bucket_other-{os.uname().nodename}_{killed}_x"  # the folder may be one that hosts share
  for name in (f"{host}_{killed}_x", f"{host}_{os.getpid()}_x", elsewhere):
    (tmp_path / name).mkdir()
  files.check_path("gs://bucket/a")
  left = {path.name for path in tmp_path.iterdir()}
  root = buckets._root()
  buckets._root.cache_clear()
  assert root.name.startswith(f"{host}_{os.getpid()}_") and left == {root.name, f"{host}_{os.getpid()}_x", elsewhere}
  assert pathlib.Path(buckets._root()).is_dir()
