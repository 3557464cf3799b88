"""Outputs destroy nothing but the file they replace, and the JSON files of a workdir end in a sentence if damaged."""

import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import threading
import time

import pytest

from rastp_jax import config as config_lib
from rastp_jax.config import Config
from rastp_jax.errors import InputError
from rastp_jax.evaluation import results
from rastp_jax.runtime import files
from rastp_jax.semantic_ids import codes
from rastp_jax.serving import recommendation_files
from rastp_jax.serving.recommender import Recommendation, UserRecommendations
from rastp_jax.training.plan import SavedProgress
from rastp_jax.training.workdir import Workdir
from tests.helpers.commands import ROOT, command

LINE = '{"user": "a", "history": ["3", "4"]}\n'


def read_fifo(path) -> tuple[threading.Thread, list[bytes]]:
  found: list[bytes] = []
  reader = threading.Thread(target=lambda: found.append(pathlib.Path(path).read_bytes()), daemon=True)
  reader.start()
  return reader, found


def test_a_fifo_is_written_through(tmp_path):
  fifo = tmp_path / "fifo"
  os.mkfifo(fifo)
  files.check_writable(fifo)  # opens nothing: it would wait, or give the reader an end
  reader, found = read_fifo(fifo)
  files.write_atomic(fifo, "content")
  reader.join(10)
  assert found == [b"content"] and stat.S_ISFIFO(fifo.stat().st_mode)
  assert list(tmp_path.iterdir()) == [fifo]


def device(path: pathlib.Path) -> pathlib.Path:
  """A /dev/null of our own where this process may make one; it may replace the real one exactly then."""
  try:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    path.write_bytes(b"")
  except PermissionError:
    pytest.skip("this process may not make devices")
  return path


@pytest.mark.parametrize("linked", [False, True])
def test_a_device_stays_one(tmp_path, linked):
  null = path = device(tmp_path / "null")
  if linked:
    path = tmp_path / "link"
    path.symlink_to("null")
  files.check_writable(path)
  files.write_json(path, {"a": 1})
  assert stat.S_ISCHR(null.stat().st_mode) and null.read_bytes() == b""
  assert path.is_symlink() == linked and len(list(tmp_path.iterdir())) == 1 + linked


@pytest.mark.parametrize("path", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output(path, capfd, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  files.check_writable(path)
  print("before")
  files.write_atomic(path, "content\n")
  print("after")
  assert capfd.readouterr().out == "before\ncontent\nafter\n"
  assert not list(tmp_path.iterdir())
  assert files.is_stdout(path) and not any(map(files.is_stdout, ("recs.jsonl", "/dev/stderr", "/dev/null")))


def test_a_symlink_is_followed_and_stays(tmp_path):
  (tmp_path / "elsewhere").mkdir()
  target, link = tmp_path / "elsewhere/file", tmp_path / "link"
  link.symlink_to("elsewhere/file")
  for content in ("new", "again"):  # the link leads nowhere at first
    files.check_writable(link)
    files.write_atomic(link, content)
    assert link.is_symlink() and not target.is_symlink() and target.read_text() == content
  with pytest.raises(RuntimeError), files.open_atomic(link) as file:
    file.write(b"half")
    raise RuntimeError
  assert target.read_text() == "again" and list(target.parent.iterdir()) == [target]


def test_a_link_to_a_directory_is_followed(tmp_path):
  (tmp_path / "empty").mkdir()
  for name, there in (("link", "empty"), ("dangling", "new")):
    (tmp_path / name).symlink_to(there)
    with files.new_directory(tmp_path / name) as out:
      (out / "file").write_text("content")
    assert (tmp_path / name).is_symlink() and (tmp_path / there / "file").read_text() == "content"
  assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["directory", "link", "absent/"])
def test_a_directory_is_refused(tmp_path, name):
  (tmp_path / "directory").mkdir()
  (tmp_path / "link").symlink_to("directory")
  for refused in (files.check_writable, lambda path: files.write_atomic(path, "content")):
    with pytest.raises(InputError, match="it is a directory"):
      refused(f"{tmp_path}/{name}")
  assert {path.name for path in tmp_path.iterdir()} == {"directory", "link"}


def test_archives_that_are_not_files_are_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "fifo.npz")
  (tmp_path / "directory.npz").mkdir()
  for name in ("fifo", "directory"):
    with pytest.raises(InputError, match="cannot be read as semantic IDs .*it is not a file"):
      codes.load(tmp_path / f"{name}.npz", dataset="mine", fingerprint="f", num_items=3)


def test_standard_output_is_not_a_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match="cannot be written to standard output"):
    files.new_directory(files.STDOUT).__enter__()
  assert not list(tmp_path.iterdir())


def test_a_link_to_itself_is_refused(tmp_path):
  (tmp_path / "loop").symlink_to("loop")
  with pytest.raises(InputError, match="leads to itself"):
    files.check_writable(tmp_path / "loop")
  with pytest.raises(InputError, match="leads to itself"):
    files.write_atomic(tmp_path / "loop", "content")
  assert (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have(tmp_path, name):
  path = f"{tmp_path}/{name}"
  uses = (
    files.check_writable,
    lambda path: files.write_atomic(path, ""),
    lambda path: files.new_directory(path).__enter__(),
    lambda path: files.directory_lock(path).__enter__(),
    Workdir,
    recommendation_files.count_histories,
    lambda path: recommendation_files.recommend_to_file(tmp_path, path),
    lambda path: results.read_metrics(path, "run"),
  )
  for use in uses:
    with pytest.raises(InputError, match="cannot be the name of a file"):
      use(path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["in.jsonl", "./in.jsonl", "link.jsonl", "hard.jsonl", "fifo"])
def test_an_output_that_is_the_input_is_refused(tmp_path, monkeypatch, output):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "in.jsonl").write_text("not even JSON")
  (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
  (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "in.jsonl")
  os.mkfifo("fifo")
  given = output if output == "fifo" else tmp_path / "in.jsonl"
  with pytest.raises(InputError, match="which would be lost"):
    recommendation_files.recommend_to_file(tmp_path / "no run", output, input_path=given)
  assert (tmp_path / "in.jsonl").read_text() == "not even JSON" and (tmp_path / "link.jsonl").is_symlink()


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
def test_an_output_that_is_part_of_the_run_is_refused(tmp_path, name):
  (tmp_path / name).write_text("of the run")
  with pytest.raises(InputError, match="which would be lost"):
    recommendation_files.recommend_to_file(tmp_path, tmp_path / name)
  code, _, err = command("rastp_jax.evaluate", f"--workdir={tmp_path}", f"--output={tmp_path / name}")
  assert code == 2 and "which would be lost" in err and "Traceback" not in err
  assert (tmp_path / name).read_text() == "of the run"


def test_an_evaluation_that_cannot_be_written_is_not_made(published_run, tmp_path):
  shutil.copytree(published_run, tmp_path / "run")
  (tmp_path / "run" / "eval_test.npz").mkdir()
  code, out, err = command("rastp_jax.evaluate", f"--workdir={tmp_path / 'run'}")
  assert code == 2 and "eval_test.npz" in err and "it is a directory" in err and "decoding" not in out


@pytest.mark.parametrize("taken", ["wide.json", "wide.npz"])
def test_two_outputs_are_two_files(tmp_path, taken):
  flags = [f"--workdir={tmp_path}", f"--output={tmp_path / 'wide.json'}", f"--markdown={tmp_path / taken}"]
  code, _, err = command("rastp_jax.evaluate", *flags)
  assert code == 2 and f"{taken}, which would be lost" in err and not list(tmp_path.iterdir())


def test_codes_are_not_replaced_by_what_is_said_about_them(tmp_path):
  (tmp_path / "codes.json").write_text("{}")
  (tmp_path / "out.json").symlink_to("codes.json")
  flags = [f"--codes={tmp_path / 'codes.json'}", f"--output={tmp_path / 'out.json'}", "--config=configs/tiny.py"]
  code, _, err = command("rastp_jax.compare_codes", *flags)
  assert code == 2 and "codes.json, which would be lost" in err, err
  assert (tmp_path / "codes.json").read_text() == "{}"


@pytest.mark.slow
@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_recommend_writes_to_standard_output_and_nothing_else_there(published_run, tmp_path, output):
  (tmp_path / "in.jsonl").write_text(LINE)
  flags = [f"--workdir={published_run}", f"--input={tmp_path / 'in.jsonl'}", f"--output={output}", "-k", "3"]
  code, out, err = command("rastp_jax.recommend", *flags)
  assert code == 0, err
  (line,) = map(json.loads, out.splitlines())
  assert len(line["recommendations"]) == 3 and "3 recommendations for 1 users" in err


def test_a_reader_that_has_ended_stops_neither_work_nor_leaves_a_traceback():
  """`command | head`: what is told is thrown away, the rest is done."""
  talks = "import sys; from rastp_jax.runtime import cli; cli.run(lambda: [print(i) for i in range(50_000)] and 3)"
  pipe = subprocess.PIPE
  with subprocess.Popen([sys.executable, "-c", talks], cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as talking:
    assert [talking.stdout.readline() for _ in range(2)] == ["0\n", "1\n"]
    talking.stdout.close()
    assert (talking.wait(300), talking.stderr.read()) == (3, "")


def test_an_output_whose_reader_has_ended_is_a_sentence(tmp_path):
  fifo = tmp_path / "fifo"
  os.mkfifo(fifo)
  threading.Thread(target=lambda: fifo.open("rb").close()).start()
  sentence = "fifo cannot be written to the end: what reads it has ended"
  with pytest.raises(InputError, match=sentence), files.open_atomic(fifo) as file:
    for _ in range(1000):
      file.write(b"x" * 100_000)
      time.sleep(0.01)


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
  values = {"a": float("nan"), "b": [1.5, -float("inf"), (2, float("inf"))], "c": {"d": "NaN", "e": True}}
  files.write_json(tmp_path / "values.json", values)
  found = files.read_json(tmp_path / "values.json", "none")
  assert found == {"a": None, "b": [1.5, None, [2, None]], "c": {"d": "NaN", "e": True}}
  answers = lambda histories: (UserRecommendations([Recommendation("7", "", "", float("nan"))], ()) for _ in histories)
  recommendation_files.write_recommendations(tmp_path / "recs.jsonl", [("\ud800", ["1"])], answers)
  line = files.parse_json((tmp_path / "recs.jsonl").read_bytes())
  assert line["user"] == "\ud800" and line["recommendations"][0]["score"] is None


# What a JSON file of a workdir may turn out to hold: its content, and the sentence's reason.
DAMAGED = {
  "nothing": (b"", "Expecting value"),
  "torn": (b'{"train": {"seed": 1', "Expecting"),
  "null": (b"null", "does not hold names with values"),
  "a number": (b"7", "does not hold names with values"),
  "a list": (b'[["train", {}]]', "does not hold names with values"),
  "a string": (b'"train"', "does not hold names with values"),
  "not UTF-8": (b'{"\xff": 1}', "can't decode byte"),
  "Infinity": (b'{"train": {"learning_rate": Infinity}}', "Infinity is not a number"),
  "NaN": (b'{"train": {"learning_rate": NaN}}', "NaN is not a number"),
  "a float too large": (b'{"train": {"learning_rate": 1e999}}', "1e999 is not a number"),
  "a number of 5,000 digits": (b'{"train": {"seed": ' + b"9" * 5000 + b"}}", "digits"),
  "lists 100,000 deep": (b'{"train": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
  "objects 100,000 deep": (b'{"train": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
  "objects 300 deep": (b'{"train": ' * 300 + b"1" + b"}" * 300, "nested too deep"),
  "one name twice": (b'{"train": {"seed": 1, "seed": 2}}', "'seed' occurs twice"),
}
# The same for config.json alone.
SETTINGS = {
  "a null section": ({"train": None}, "config.train=None is not a section"),
  "a section that is a list": ({"train": [1]}, r"config.train=\[1\] is not a section"),
  "a seed of 71 bits": ({"train": {"seed": 2**70}}, "config.train.seed has 71 bits"),
  "a seed that JAX would cut": ({"train": {"seed": 2**32}}, "config.train.seed=4294967296 is too large"),
  "a float of 2000 bits": ({"train": {"learning_rate": 2**2000}}, "config.train.learning_rate has 2001 bits"),
  "null for a number": ({"train": {"seed": None}}, "config.train.seed=None is of type NoneType"),
  "a NUL": ({"data": {"data_dir": "a\0b"}}, "config.data.data_dir='a.x00b' holds a NUL"),
  "two points": ({"train": {"length": "1.2.3 steps"}}, "is not a duration"),
  "endless": ({"train": {"length": "1e999 steps"}}, "is not a duration"),
  "a method's options as a number, former names": (
    {"semantic_ids": {"rqvae": 5, "rqvae_latent": 32}},
    "config.semantic_ids.rqvae=5 is not a section",
  ),
  "a setting under both names": ({"reduction": {"method": 1}, "pruning": {"method": {}}}, "config.reduction.method"),
  "a setting that is none": ({"train": {"sead": 1}}, "not a setting of this program"),
}


def refused(read, path: pathlib.Path, content: bytes, reason: str) -> None:
  path.write_bytes(content)
  with pytest.raises(InputError, match=reason) as caught:
    read()
  sentence = str(caught.value)
  assert str(path) in sentence and "\n" not in sentence and len(sentence) < 600
  assert sentence.rstrip(".").rpartition(": ")[2]  # what to do


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_json_files_end_in_a_sentence(tmp_path, name):
  run = Workdir(tmp_path)
  refused(run.read_config, run.config, *DAMAGED[name])
  refused(run.read_summary, run.summary, *DAMAGED[name])
  evaluation = run.evaluation("test")
  refused(lambda: results.read_metrics(evaluation, "run"), evaluation, *DAMAGED[name])
  refused(lambda: results.load(evaluation, "run"), evaluation, *DAMAGED[name])
  if name != "nothing":  # a log without lines is one
    refused(run.read_log, run.log, DAMAGED[name][0] + b"\n", "is damaged")


@pytest.mark.parametrize("name", SETTINGS)
def test_damaged_settings_end_in_a_sentence(tmp_path, name):
  values, reason = SETTINGS[name]
  run = Workdir(tmp_path)
  refused(run.read_config, run.config, json.dumps(values).encode(), reason)


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_json_that_is_not_a_file(tmp_path, kind):
  run = Workdir(tmp_path)
  for path, read in ((run.config, run.read_config), (run.summary, run.read_summary)):
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(InputError, match="it is not a file"):
      read()


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"users": "many"}, "users is not a number"),
    ({"recall@5": [1]}, "recall@5 is not a number"),
    ({"config": None}, "settings"),
    ({"config": {"train": None}}, "is not a section"),
  ],
)
def test_evaluations_of_the_wrong_types(tmp_path, change, reason):
  path = tmp_path / "eval_test.json"
  values = {"users": 1, "beam_width": 10, "step": 5, "split": "test", "recall@5": 0.5}
  values["config"] = config_lib.to_dict(Config())
  path.write_text(json.dumps(values))
  assert results.read_metrics(path, "run")["users"] == 1
  for name in ("users", "beam_width", "step", "split"):
    lacking = {key: value for key, value in values.items() if key != name}
    refused(lambda: results.read_metrics(path, "run"), path, json.dumps(lacking).encode(), name)
  refused(lambda: results.read_metrics(path, "run"), path, json.dumps(values | change).encode(), reason)


def test_a_summary_of_the_wrong_types(tmp_path):
  run = Workdir(tmp_path)
  run.summary.write_text('{"steps": 5}')
  assert run.read_summary() == {"steps": 5}
  for wrong in ('"5"', "null", "[5]", "true"):
    refused(run.read_summary, run.summary, b'{"steps": %s}' % wrong.encode(), "steps is not a number")


@pytest.mark.parametrize(
  "damage",
  [
    {"next_batch": "5"},
    {"next_batch": -1},
    {"next_batch": True},
    {"order": "2"},
    {"samples": None},
    {"seconds": "1"},
    {"logged_seconds": [1]},
    {"standing": {"best_step": None, "best": "x", "evaluations_since_best": 0}},
    {"standing": {"best_step": None, "best": None, "evaluations_since_best": None}},
  ],
)
def test_progress_of_the_wrong_types(damage):
  values = SavedProgress().to_json()
  assert SavedProgress.from_json(values) == SavedProgress()
  with pytest.raises(ValueError, match="progress file is damaged"):
    SavedProgress.from_json(values | damage)


def test_the_command_ends_with_code_2_and_one_line(tmp_path):
  (tmp_path / "config.json").write_text("[" * 100_000)
  code, out, err = command("rastp_jax.evaluate", f"--workdir={tmp_path}")
  assert code == 2 and out == "Loading the program and the data …\n"
  assert "config.json cannot be read (it is nested too deep): put back a copy" in err
  assert "Traceback" not in err and len(err.strip().splitlines()) == 1
