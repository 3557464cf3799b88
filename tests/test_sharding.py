"""The mesh and the table: where weights and batches go, and that the step computes the same wherever they are."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rastp_jax.config import MeshConfig
from rastp_jax.errors import InputError
from rastp_jax.experiments.tiny import make_config, make_data
from rastp_jax.runtime import sharding
from rastp_jax.training import step
from rastp_jax.training.setup import make_setup

ROWS = 24  # of a batch, and 3 of each of 8 devices: no weight has such a dimension, every activation has
MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (2, 4, 1), "tensor": (2, 2, 2)}


@dataclasses.dataclass(frozen=True)
class Run:
  """Two dispatches of two steps on one mesh."""

  state: step.TrainState
  losses: list[float]
  text: str  # of the compiled step
  mesh: jax.sharding.Mesh


@pytest.fixture(scope="module")
def run_on():
  # 40 tokens, of which RASTP leaves as many as the decoder's four queries need to read states (Attention.over_states).
  config = make_config(data__max_items=8, data__bucket_lengths=(8,), reduction__keep_tokens=(32,))
  histories, semantic_ids = make_data()
  codes = semantic_ids.codes[np.random.default_rng(0).integers(0, 40, (2, ROWS, 9))]
  batch = {"history": codes[:, :, :8], "target": codes[:, :, 8], "weight": np.ones((2, ROWS), np.float32)}
  runs = {}

  def run(name: str) -> Run:
    if name not in runs:
      sizes = MESHES[name]
      mesh = sharding.make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])
      setup = make_setup(config, histories, semantic_ids, mesh=mesh)
      state = setup.state_with(step.fresh_params(config, semantic_ids))
      placed = sharding.place_batch(batch, mesh, row_axis=1)
      program = setup.train_steps[0].lower(state, placed).compile()
      losses = []
      for _ in range(2):
        state = program(state, placed)
        losses.append(float(state.sums["loss"]))
      runs[name] = Run(state, losses, program.as_text(), mesh)
    return runs[name]

  return run


@pytest.mark.parametrize("name", ["data", "fsdp", "tensor"])
def test_all_meshes_compute_the_same(run_on, name):
  one, many = run_on("one"), run_on(name)
  np.testing.assert_allclose(many.losses, one.losses, rtol=1e-5)
  assert int(many.state.step) == 4 and int(many.state.skipped["in_a_row"]) == 0


def collectives(text: str) -> dict[str, list[tuple[int, ...]]]:
  """Kind of collective -> shapes of what each puts out, in a compiled program's text."""
  found = {}
  for shape, kind in re.findall(r" = (\S.*?) (all-\w+|reduce-scatter|collective-permute)(?:-start)?\(", text):
    shapes = [tuple(map(int, filter(None, dims.split(",")))) for dims in re.findall(r"\w+\[([\d,]*)\]", shape)]
    found.setdefault(kind, []).extend(shapes)
  return found


def test_data_parallel_steps_only_add_gradients(run_on):
  run = run_on("data")
  found = collectives(run.text)
  assert set(found) == {"all-reduce"}
  assert holds_no_activations(found)
  gradients = sum(int(np.prod(shape)) for shape in found["all-reduce"])
  assert gradients >= sum(value.size for value in jax.tree.leaves(run.state.params))


def holds_no_activations(found: dict[str, list[tuple[int, ...]]]) -> bool:
  return all(dim not in (ROWS, ROWS // 8) for shapes in found.values() for shape in shapes for dim in shape)


def test_fsdp_steps_gather_weights_and_never_activations(run_on):
  run = run_on("fsdp")
  found = collectives(run.text)
  assert set(found) <= {"all-reduce", "reduce-scatter", "all-gather"}
  split = [value.shape for value in jax.tree.leaves(run.state.params) if not value.sharding.is_fully_replicated]
  assert sorted(found["all-gather"]) == sorted(split)
  assert holds_no_activations(found)


def test_weights_and_moments_are_where_the_table_says(run_on):
  state = run_on("tensor").state
  expected = {
    "code_embedding": PartitionSpec(None, "fsdp"),  # 25 codes cannot be halved
    "heads/0/kernel": PartitionSpec("fsdp", "tensor"),
    "heads/3/kernel": PartitionSpec("fsdp"),
    "encoder_blocks/0/attention/q/kernel": PartitionSpec("fsdp", "tensor"),
    "encoder_blocks/0/attention/o/kernel": PartitionSpec("tensor", "fsdp"),
    "decoder_blocks/0/mlp/layers/1/kernel": PartitionSpec("tensor", "fsdp"),
    "decoder_norm/scale": PartitionSpec(),
    "bos": PartitionSpec(),
  }
  seen = {name: 0 for name in expected}
  for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for end, spec in expected.items():
      if name.endswith("/" + end):
        seen[end] += 1
        wanted = jax.sharding.NamedSharding(run_on("tensor").mesh, spec)
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), (name, leaf.sharding)
  assert set(seen.values()) == {3}  # the weight and its two moments


def test_every_weight_has_a_line_in_the_table():
  mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2))
  more = [{"model__item_scores": "set"}, {"model__item_scores": "vectors", "model__item_repeats": True}]
  for changes in ({}, {"model__separator": False}, {"model__mlp_hidden_layers": 2}, *more):
    _, params = step.abstract_model(make_config(**changes), make_data()[1], mesh)
    assert all(leaf.sharding.mesh.shape == mesh.shape for leaf in jax.tree.leaves(params))
  with pytest.raises(KeyError, match="no line for 'params/new_kind_of_weight'"):
    sharding.placement("params/new_kind_of_weight", (4, 4), mesh)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  id: int
  process_index: int
  slice_index: int
  platform: str = "cpu"
  device_kind: str = "cpu"


def devices(slices: int, hosts: int, each: int) -> list[FakeDevice]:
  """`each` devices on each of `hosts` hosts of each of `slices` slices."""
  places = [(s, h) for s in range(slices) for h in range(hosts) for _ in range(each)]
  return [FakeDevice(number, s * hosts + h, s) for number, (s, h) in enumerate(places)]


def test_default_mesh_shares_batches_over_all_devices():
  assert sharding.device_grid(devices(1, 2, 4), MeshConfig()).shape == (8, 1, 1)
  assert sharding.device_grid(devices(1, 2, 4), MeshConfig(fsdp=4)).shape == (2, 4, 1)


@pytest.mark.parametrize(("config", "axis"), [(MeshConfig(fsdp=4), 0), (MeshConfig(data=1, fsdp=-1), 1)])
def test_slices_are_joined_along_the_outermost_axis_they_divide(config, axis):
  grid = sharding.device_grid(devices(2, 2, 4), config)
  slices = np.vectorize(lambda device: device.slice_index)(grid)
  for index in range(2):
    half = np.take(slices, range(index * grid.shape[axis] // 2, (index + 1) * grid.shape[axis] // 2), axis)
    assert (half == index).all()


@pytest.mark.parametrize(
  ("config", "at", "sentence"),
  [
    (MeshConfig(data=3, fsdp=-1), devices(1, 1, 8), "asks for data=3 x fsdp=-1 x tensor=1, but there are 8 devices"),
    (MeshConfig(data=4), devices(1, 1, 8), "give sizes whose product is 8, or -1 for the rest"),
    (MeshConfig(tensor=8), devices(1, 2, 4), "would split a row over several hosts of 4 devices each"),
    (MeshConfig(data=1, fsdp=4, tensor=3), devices(3, 1, 4), "slices|several hosts"),
  ],
)
def test_meshes_that_do_not_fit_are_refused(config, at, sentence):
  with pytest.raises(InputError, match=sentence):
    sharding.device_grid(at, config)
