"""What the commands import, imported once by the process that `commands` makes them forks of.

None of it may start JAX's devices, whose threads a fork would lack.
"""

# ruff: noqa: E402, F401, I001
from absl import logging

logging.use_absl_handler()  # as `app.run` does before a command imports the rest; else Orbax's imports add another one

import matplotlib.pyplot
import sklearn.decomposition
import sklearn.feature_extraction.text
import rastp_jax.data.preparation
import rastp_jax.evaluation.evaluate_run
import rastp_jax.evaluation.html_report
import rastp_jax.semantic_ids.preparation
import rastp_jax.serving.recommender
import rastp_jax.training.import_torch_weights
import rastp_jax.training.setup
import rastp_jax.training.trainer
from jax._src import xla_bridge

assert not xla_bridge.backends_are_initialized()
