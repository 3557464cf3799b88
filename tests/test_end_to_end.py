"""The commands of README.md, to the last one, on the generated data."""

import json
import re
import shlex

import pytest

from rastp_jax.data import histories
from tests.helpers.commands import ROOT, command, started
from tests.helpers.synthetic_recall import popularity_recall

# The documented commands are about Beauty, whose files are not here.
BEAUTY, GENERATED = "configs/beauty.py:cpu", "configs/tiny.py"
LENGTH = "0.8 epochs"  # of 118 steps: from 100 on there are 20 log lines
SMALL = (
  "--config.model.encoder_blocks=1",
  "--config.model.decoder_blocks=1",
  "--config.data.max_items=4",
  "--config.data.num_buckets=1",
  "--config.train.eval_users=200",
)


def documented(language: str) -> str:
  """The blocks of README.md in one language."""
  return "\n".join(
    re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
  )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """README's commands have run in a directory; "untrained" there is a run of a single step."""
  place = tmp_path_factory.mktemp("readme")
  (place / "configs").symlink_to(ROOT / "configs")
  commands = [shlex.split(line) for line in re.findall(r"^python -m (.*)$", documented("bash"), re.MULTILINE)]
  assert [name for name, *_ in commands] == ["rastp_jax.prepare", "rastp_jax.train", "rastp_jax.evaluate"]
  said = {}
  for name, *arguments in commands:
    arguments = [argument.replace(BEAUTY, GENERATED) for argument in arguments]
    if name != "rastp_jax.prepare":
      arguments.append("--compilation_cache=compiled")
    if name == "rastp_jax.train":
      arguments += SMALL
      one = [argument for argument in arguments if not argument.startswith("--workdir")]
      code, _, err = command(name, *one, "--workdir=untrained", "--config.train.length=1 steps", cwd=place)
      assert code == 0, err
      arguments.append(f"--config.train.length={LENGTH}")
    if name == "rastp_jax.evaluate":
      arguments.append("--workdir=untrained")
    code, said[name], err = started(name, *arguments, cwd=place)
    assert code == 0, err
  return place, said


@pytest.mark.slow
def test_a_trained_model_beats_popularity_and_an_untrained_one_does_not(trained):
  place, said = trained
  assert "240 items" in said["rastp_jax.prepare"] and "2000 users" in said["rastp_jax.prepare"]
  loaded = histories.load(str(place / "data"), "synthetic")
  users = [loaded.items[a:b].tolist() for a, b in zip(loaded.offsets[:-1], loaded.offsets[1:], strict=True)]
  popularity = popularity_recall(users)
  runs = {"none": "untrained", "some": "runs/beauty"}
  metrics = {name: json.loads((place / run / "eval_test.json").read_text()) for name, run in runs.items()}
  assert metrics["some"]["recall@10"] > 3 * popularity
  assert metrics["none"]["recall@10"] < 2 * popularity
  for values in metrics.values():
    assert values["users"] == 2000 and values["beam_width"] == 10
    assert values["invalid_beams"] == values["repeated_beams"] == 0
    assert {"recall@5", "ndcg@5", "ndcg@10", "step", "config", "command", "step_bytes", "versions", "date"} <= set(
      values
    )
  table = said["rastp_jax.evaluate"]
  assert f"{metrics['some']['recall@10']:.4f}" in table and "ratio to the first" in table


@pytest.mark.slow
def test_logs_are_complete(trained):
  place, said = trained
  lines = [json.loads(line) for line in (place / "runs/beauty/metrics.jsonl").read_text().splitlines()]
  assert len(lines) >= 20 and lines[-1]["loss"] < lines[0]["loss"]
  assert all({"step", "loss", "samples_per_second"} <= set(line) for line in lines)
  assert list((place / "runs/beauty/tensorboard").iterdir())
  assert any(file.name.startswith("jit_train_step") for file in (place / "compiled").iterdir())
  printed = said["rastp_jax.train"].splitlines()
  assert printed[0].startswith("Loading") and "compiling 1 of 1: histories of up to 4 items …" in printed
  assert sum("samples/s" in line and "left" in line for line in printed) == len(lines)
  assert printed[-1] == "  next        python -m rastp_jax.evaluate --workdir=runs/beauty"


@pytest.mark.slow
def test_the_python_of_the_readme_recommends(trained, monkeypatch):
  monkeypatch.chdir(trained[0])
  code = re.sub(r"B00\w+", "SYN0000001", documented("python"))
  *setup, last = code.strip().splitlines()
  names = {}
  exec("\n".join(setup), names)  # the page's own lines
  ((best, *others),) = eval(last, names)
  assert len(others) == 9 and best.score > others[0].score and best.title.count("No.") == 1


@pytest.mark.slow
def test_a_pruned_model_can_be_decoded_densely(trained):
  place, _ = trained
  dense = ["--workdir=runs/beauty", "--override=reduction.method=none"]
  code, _, err = command("rastp_jax.evaluate", *dense, cwd=place)
  assert code == 2 and err.strip().splitlines()[-1].startswith("error: --override needs --output=FILE")
  code, _, err = command("rastp_jax.evaluate", *dense, "--output=dense.json", cwd=place)
  assert code == 0, err
  metrics, pruned = (json.loads((place / path).read_text()) for path in ("dense.json", "runs/beauty/eval_test.json"))
  assert metrics["config"]["reduction"]["method"] == "none" and metrics["recall@10"] != pruned["recall@10"]


@pytest.mark.slow
def test_the_report_of_both_runs_shows_item_titles(trained):
  place, _ = trained
  code, out, err = command(
    "rastp_jax.report", "--workdir=untrained", "--workdir=runs/beauty", "--output=report", cwd=place
  )
  assert code == 0, err
  page = (place / "report" / "index.html").read_text()
  assert out.strip().endswith("report/index.html: open it in a browser")
  titles = [item.title for item in histories.load_items(str(place / "data"), "synthetic")]
  assert sum(title in page for title in titles) >= 5
  assert "2,000 users of synthetic" in page and 'class="hit"' in page


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    (["rastp_jax.evaluate"], "--workdir is missing"),
    (["rastp_jax.evaluate", "--workdir=nowhere"], "nowhere holds no training run"),
    (["rastp_jax.report", "--workdir=nowhere", "--output=x"], "nowhere has no results yet"),
    (["rastp_jax.train", "--config=configs/tiny.py"], "--workdir is missing"),
    (["rastp_jax.train", "--config=configs/tiny.py", "--workdir=x", "--config.data.data_dir=nowhere"], "not prepared"),
    (["rastp_jax.train", "--config={broken}"], "The config file cannot be used: AssertionError."),
    (["rastp_jax.train", "--config={absent}", "--workdir=x"], "No such file or directory: 'own.json'."),
  ],
)
def test_mistakes_end_in_one_sentence(arguments, sentence, tmp_path):
  places = {name: tmp_path / f"{name}.py" for name in ("broken", "absent")}
  places["broken"].write_text("def get_config():\n  assert False\n")
  places["absent"].write_text("def get_config():\n  return open('own.json')\n")
  code, _, err = command(*(argument.format(**places) for argument in arguments))
  assert code == 2 and "Traceback" not in err
  assert sentence in err.strip().splitlines()[-1]
  assert not (ROOT / "x").exists()
