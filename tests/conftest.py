"""Test settings: eight fake devices, no silent rank promotion, shapes checked against signatures."""

import json
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["NPROC"] = "32"  # threads that the fake devices share: see rastp_jax/cli.py
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Every jaxtyping signature of the model is checked while the tests run; in production it costs nothing.
jaxtyping.install_import_hook("rastp_jax.model", "beartype.beartype")

_FIGURES = pytest.StashKey[dict]()


def pytest_addoption(parser):
  parser.addoption("--figures", metavar="FILE", help="write the largest differences from the goldens to a JSON file")


def pytest_configure(config):
  config.stash[_FIGURES] = {}


@pytest.fixture(scope="session")
def figures(pytestconfig) -> dict[str, dict[str, float]]:
  """quantity -> {"tolerance", "largest difference"}, over all tests that compare with goldens."""
  return pytestconfig.stash[_FIGURES]


def pytest_sessionfinish(session):
  path, figures = session.config.getoption("--figures"), session.config.stash[_FIGURES]
  if path and figures:
    command = " ".join(["python -m pytest", *sys.argv[1:]])
    pathlib.Path(path).write_text(json.dumps({"command": command, "quantities": figures}, indent=2) + "\n")
