"""Test settings: eight fake devices, no silent promotion of ranks or dtypes, shapes checked against signatures."""

import atexit
import fcntl
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable

from tests.helpers import compiling

os.environ["XLA_FLAGS"] = " ".join(
  ["--xla_force_host_platform_device_count=8", compiling.FLAGS, os.environ.get("XLA_FLAGS", "")]
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "32"  # threads that the fake devices share: see rastp_jax/runtime/cli.py
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # source lines in programs take a twentieth of the tests' time
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # made by the first process, shared with those that it starts
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rastp_jax_compiled_")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Every jaxtyping signature of the model is checked while the tests run; in production it costs nothing.
jaxtyping.install_import_hook("rastp_jax.model", "beartype.beartype")

# The files whose tests compute with our code alone; Optax relies on promotion, so training cannot be strict.
_STRICT_DTYPES = {"test_batches.py", "test_model.py", "test_parity.py", "test_products.py", "test_reduction.py"}

_DIFFERENCES = pytest.StashKey[dict]()


def pytest_addoption(parser):
  parser.addoption(
    "--differences", metavar="FILE", help="write the largest differences from the goldens to a JSON file"
  )


def pytest_collection_modifyitems(items):
  """The longest files come first, so that no process is left with one of them when the other has ended."""
  longest = (
    "test_end_to_end.py",
    "test_hosts.py",
    "test_training.py",
    "test_interactions.py",
    "test_reduction.py",
    "test_experiments.py",
  )
  items.sort(key=lambda item: item.path.name not in longest)


def pytest_configure(config):
  config.stash[_DIFFERENCES] = {}
  if config.getoption("--differences") and config.getoption("numprocesses", None):
    raise pytest.UsageError("--differences collects in one process: add --numprocesses=0.")


@pytest.fixture(autouse=True)
def strict_dtypes(request):
  """No silent promotion of dtypes."""
  import jax

  with jax.numpy_dtype_promotion("strict" if request.path.name in _STRICT_DTYPES else "standard"):
    yield


@pytest.fixture(scope="session")
def differences(pytestconfig) -> dict[str, dict[str, float]]:
  """quantity -> {"tolerance", "largest difference"}, over all tests that compare with goldens."""
  return pytestconfig.stash[_DIFFERENCES]


def pytest_sessionfinish(session):
  path, differences = session.config.getoption("--differences"), session.config.stash[_DIFFERENCES]
  if path and differences:
    command = " ".join(["python -m pytest", *sys.argv[1:]])
    pathlib.Path(path).write_text(json.dumps({"command": command, "quantities": differences}, indent=2) + "\n")


def _made_once(tmp_path_factory, name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """A directory that one of the processes that run the tests makes, for all of them."""
  place = tmp_path_factory.getbasetemp()
  place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / name
  with place.with_suffix(".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (place / "made").exists():
      shutil.rmtree(place, ignore_errors=True)  # what a process left whose attempt failed
      place.mkdir()
      make(place)
      (place / "made").touch()
  return place


@pytest.fixture(scope="session")
def published_run(tmp_path_factory) -> pathlib.Path:
  """A workdir made from the published model's trained golden weights, on the generated dataset with golden codes."""
  return _made_once(tmp_path_factory, "published", _publish) / "run"


def _publish(place: pathlib.Path) -> None:
  import numpy as np

  from rastp_jax import config as config_lib
  from rastp_jax.data.sources import detect
  from rastp_jax.semantic_ids.codes import SemanticIds, semantic_ids_path
  from rastp_jax.training import import_torch_weights, runs

  golden = np.load(pathlib.Path(__file__).parent / "golden" / "small_trained.npz")
  weights = {name.removeprefix("param/"): golden[name] for name in golden.files if name.startswith("param/")}
  np.savez(place / "weights.npz", **weights)
  sizes = json.loads(str(golden["config"]))
  config = config_lib.Config(
    data=config_lib.DataConfig("synthetic", str(place / "data"), max_items=10, bucket_lengths=(4, 10)),
    model=config_lib.ModelConfig(
      d_model=sizes["d_model"],
      num_heads=sizes["num_heads"],
      head_dim=sizes["d_kv"],
      d_ff=sizes["d_ff"],
      uniform_width=True,
    ),
    reduction=config_lib.ReductionConfig(positions="none", score_dropout=True, score_padded_queries=True),
    eval=config_lib.EvalConfig(batch_size=64),
  )
  prepared, _ = detect.prepare_dataset(config.data)
  width = sizes["num_embeddings_per_hierarchy"]
  provenance = {"dataset": "synthetic", "dataset_fingerprint": prepared.fingerprint}
  codes = SemanticIds(golden["catalogue_sids"][: prepared.num_items], (width,) * 4, provenance)
  codes.save(semantic_ids_path(config))
  import_torch_weights.import_weights(
    config,
    *runs.load_data(config),
    import_torch_weights.read_weights(place / "weights.npz"),
    place / "run",
    "weights.npz",
  )


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> pathlib.Path:
  """The workdir of an uninterrupted tiny run on one device (see `tests/helpers/training.py`)."""
  from tests.helpers.training import run

  return _made_once(tmp_path_factory, "reference", lambda place: run(place / "run")) / "run"
