"""The numbers on every page are those of docs/results, and every command it mentions exists."""

import copy
import importlib.util
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rastp_jax import experiment
from rastp_jax.config import ModelConfig, ReductionConfig
from rastp_jax.experiments import tables
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.reduction import methods

ROOT = pathlib.Path(__file__).parent.parent
# All that tells people what to type.
PATTERNS = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "launch/*", "configs/*.py", "rastp_jax/**/*.[pj]*")
MODULE = re.compile(r"-m (rastp_jax[.\w]*)(?: (\w+))?")
SCRIPT = re.compile(r"(?<![\w/.])(?:\./)?(launch/\w+(?:\.\w+)?)")


def pages() -> list[pathlib.Path]:
  found = (path for pattern in PATTERNS for path in ROOT.glob(pattern))
  return sorted(path for path in found if path.is_file() and path.suffix != ".pyc")


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_tables_are_up_to_date(page):
  assert tables.filled(page.read_text()) == page.read_text()


def test_validation_users_say_which_reduction_is_the_best_one(monkeypatch):
  """Not the test users beside whom it is shown."""
  read = tables.read
  name = "item_sum, then recent 1/2"

  def with_best(stage):
    def changed(file):
      found = copy.deepcopy(read(file))
      for run in found["runs"] if file == "laboratory" else ():
        if (run["config"], run["stage"], run["name"]) == ("configs/beauty.py:cpu", stage, name):
          run["ndcg@10"] = 0.9
      return found

    monkeypatch.setattr(tables, "read", changed)
    return re.findall("best reduction: `(.*?)`", tables.answer())

  assert with_best("train") == [name] and with_best("confirm") != [name]


def test_every_command_that_is_mentioned_exists():
  names, wrong = experiment.find(), []
  for page in pages():
    text = page.read_text()
    for module, argument in MODULE.findall(text):
      module = module.rstrip(".")
      if module.endswith(".NAME"):
        continue
      exists = importlib.util.find_spec(module) is not None
      if module == "rastp_jax.experiment" and argument not in ("", "NAME"):
        exists = argument in names
      if not exists:
        wrong.append(f"{page.relative_to(ROOT)}: python -m {module} {argument}")
    wrong += [f"{page.relative_to(ROOT)}: {script}" for script in SCRIPT.findall(text) if not (ROOT / script).exists()]
  assert not wrong


def test_the_method_of_the_page_about_ideas_reduces(monkeypatch):
  function, _, entry = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ideas.md").read_text(), re.DOTALL)
  names = {"Method": methods.Method}
  exec(function, names)
  assert len(function.splitlines()) <= 8
  added = eval("{" + entry + "}", names)
  monkeypatch.setitem(methods.REDUCTIONS, "fine_first", added["fine_first"])
  sizes = ModelConfig(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_blocks=1, decoder_blocks=1)
  reduction = ReductionConfig(method="fine_first", after_block=(-1,), keep_ratio=(0.5,))
  model = EncoderDecoder(sizes, reduction, (4, 4, 4), rngs=nnx.Rngs(0))
  _, (stage,) = model.encode_stages(jnp.zeros((2, 4, 3), jnp.int32))
  levels = np.asarray(model.layout.levels(stage.after.positions))
  assert sorted(levels[0].tolist()) == [2, 2, 2, 2, 3, 3, 3, 3]


def test_docs_holds_no_programs():
  assert not list(ROOT.glob("docs/**/*.py"))
