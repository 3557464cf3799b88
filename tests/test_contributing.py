"""The recipes of CONTRIBUTING.md: each is followed to the letter in a copy of the program, and counted in files."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# What must work afterwards, by the recipe's heading.
CHECKS = {
  "Add a reduction method": """
import jax, numpy as np
from flax import nnx
from rastp_jax import config as config_lib
from rastp_jax.model.factory import make_model
config = config_lib.from_dict({"reduction": {"method": "fine_first", "after_block": (-1,), "keep_ratio": (0.5,)}})
model = make_model(config, (4, 4, 4), rngs=nnx.Rngs(0))
encoded, (stage,) = model.encode_stages(np.zeros((2, 4, 3), np.int32))
levels = np.asarray(model.layout.levels(stage.after.positions))
assert sorted(levels[0].tolist()) == [2, 2, 2, 2, 3, 3, 3, 3], levels
assert "fine_first" in config_lib.describe_settings()
""",
  "Add a dataset": """
import importlib
from rastp_jax import config as config_lib
from rastp_jax.data import datasets
assert datasets.DATASETS["office"].category == "Office_Products"
assert config_lib.from_dict(importlib.import_module("configs.office").get_config("cpu")).data.dataset == "office"
""",
  "Add a quantizer": """
import numpy as np
from rastp_jax import config as config_lib
from rastp_jax.semantic_ids.quantizers import registry
values = {"method": "residual_farthest", "levels": 2, "codebook_size": 4, "residual_farthest": {"sample": 50}}
settings = config_lib.from_dict({"semantic_ids": values}).semantic_ids
vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
learned = registry.QUANTIZERS[settings.method].fit(vectors, settings)
codes = learned.encode(vectors)
assert codes.shape == (60, 2) and codes.max() < 4
learned.save("codebooks.npz")
assert (registry.load("codebooks.npz").encode(vectors) == codes).all()
""",
  "Add a model": """
import jax, numpy as np
from flax import nnx
from rastp_jax import config as config_lib
from rastp_jax.generation.beam_search import beam_search
from rastp_jax.model.factory import make_model
from rastp_jax.runtime import sharding
config = config_lib.from_dict({"model": {"architecture": "mean_history"}, "reduction": {"method": "none"}})
model = make_model(config, (4, 3), rngs=nnx.Rngs(0))
codes = np.zeros((2, 3, 2), np.int32)
batch = {"history": codes, "target": codes[:, 0], "weight": np.ones(2, np.float32)}
assert np.isfinite(float(model.loss(batch)[0]))
beams = beam_search(model, model.encode(batch["history"]), None, 5, renormalize=False)
assert beams.codes.shape == (2, 5, 2) and model.item_log_probs(model.encode(batch["history"]), codes[0]) is None
sharding.placements(nnx.to_pure_dict(nnx.state(model, nnx.Param)), sharding.make_mesh())
""",
}


def recipes() -> dict[str, str]:
  """The sections of CONTRIBUTING.md by their heading."""
  _, *parts = re.split(r"^## ", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
  return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def follow(recipe: str, root: pathlib.Path) -> set[str]:
  """Does what a recipe says in a copy of the program; returns the files it touched."""
  touched = set()
  path = None
  for named, block in re.findall(
    r"`([\w/]+\.py)`|```python\n(.*?)```|`ResidualFarthest` in the tuple", recipe, re.DOTALL
  ):
    if named:
      path = named
      continue
    if path is None:
      continue
    target = root / path
    if not block:  # a name that goes into a tuple
      target.write_text(target.read_text().replace("RandomCodes)", "RandomCodes, ResidualFarthest)"))
    elif not target.exists():
      target.write_text(block)
    elif block.startswith(("from ", "import ")):
      text = target.read_text()
      target.write_text(re.sub(r"^(from rastp_jax)", rf"{block}\1", text, count=1, flags=re.MULTILINE))
    else:
      text, opening = target.read_text(), r"^((?:REDUCTIONS|DATASETS|MODELS)\b[^\n]*= ?\{)"
      assert re.search(opening, text, re.MULTILINE), path
      end = re.search(opening, text, re.MULTILINE).end()
      target.write_text(f"{text[:end]}\n{block}{text[end:]}")
    touched.add(path)
  return touched


@pytest.mark.slow
@pytest.mark.parametrize("heading", CHECKS)
def test_a_recipe_works_and_touches_two_files(heading, tmp_path):
  for folder in ("rastp_jax", "configs"):
    shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
  assert len(follow(recipes()[heading], tmp_path)) == 2
  environment = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", CHECKS[heading]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
