"""Every registered reduction: the same invariants for all. test_reduction_oracles.py has the formula of each."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rastp_jax import config as config_lib
from rastp_jax.config import ModelConfig, ReductionConfig
from rastp_jax.errors import InputError
from rastp_jax.model.dropout import Dropout
from rastp_jax.model.encoder_decoder import EncoderDecoder
from rastp_jax.model.layers import EncoderBlock
from rastp_jax.reduction import merge, schedule, select
from rastp_jax.reduction.methods import REDUCTIONS
from rastp_jax.reduction.survival import NO_TOKEN, SURVIVED, dropped_at
from rastp_jax.reduction.tokens import ItemLayout, Seen, Tokens

MODEL = ModelConfig(d_model=16, num_heads=2, head_dim=8, d_ff=32, encoder_blocks=2, decoder_blocks=1)
WIDTHS = (6, 6, 6, 3)
ITEMS = 6
LENGTHS = (ITEMS, 2, 4, 0, 1)  # a full row, short ones, a row of padding only, and one that fits

METHODS = [name for name in REDUCTIONS if name not in ("none", "given")]  # the one is dense, the other an oracle's
SOFT_SLOTS = ("latent_queries", "slimming")  # always K of them
LAST_LEVEL = ("no_collision_code", "codes_first", "rastp_codes")  # which know collision codes from learned ones
# Tokens that methods with a rule of their own leave, by the number of items.
REMAINING = {
  "no_collision_code": lambda items: items * 4,
  "foveated": lambda items: items * 5 if items * 5 <= 9 else items + (9 - items) // 4 * 4,
  "coarse_by_age": lambda items: min(items, 5) * 5 + max(items - 5, 0) * 2,
}
BUDGETED = [name for name in METHODS if REDUCTIONS[name].tokens is None]
BEFORE = [name for name in METHODS if REDUCTIONS[name].before_blocks]


def build(reduction, model_config=MODEL):
  """A model, whose weights are made once for all methods that have none of their own."""
  if reduction.method != "none" and any(method.learned is not None for method in schedule.methods_of(reduction)):
    return EncoderDecoder(model_config, reduction, WIDTHS, rngs=nnx.Rngs(0))
  model = nnx.merge(*_dense(model_config))
  model.reduction = reduction
  return model


@functools.cache
def _dense(model_config):
  return nnx.split(EncoderDecoder(model_config, ReductionConfig(method="none"), WIDTHS, rngs=nnx.Rngs(0)))


def make_history(seed=0, items=ITEMS, lengths=LENGTHS):
  rng = np.random.default_rng(seed)
  codes = np.stack([rng.integers(0, width, (len(lengths), items)) for width in WIDTHS], axis=-1).astype(np.int32)
  return jnp.asarray(np.where(np.arange(items)[None, :, None] < np.asarray(lengths)[:, None, None], codes, -1))


def setting(name, *, after_block=None, keep_tokens=(9,), **changes):
  """Where not said, a stage after the first block; after the second one for methods that note something after each, and
  for ToMe, which compares keys: in the first block those of equal codes are equal, up to rounding."""
  if after_block is None:
    after_block = (1,) if REDUCTIONS[name].watch is not None or name == "tome" else (0,)
  return ReductionConfig(method=name, after_block=after_block, keep_tokens=keep_tokens, **changes)


_PROGRAMS = {}  # each program is compiled once, however many tests look at what it gives


def beside_others(history):
  """The same rows twice, with more padding: what else is in the batch, and how long it is."""
  return jnp.pad(jnp.concatenate([history, history]), ((0, 0), (0, 3), (0, 0)), constant_values=-1)


def stages_of(reduction, history):
  if reduction not in _PROGRAMS:
    _PROGRAMS[reduction] = jax.jit(build(reduction).encode_stages)
  return _PROGRAMS[reduction](history)


def seen_at(stage, settings, model=None, number=0):
  """What a method saw at a stage."""
  learned = model.reducers[str(number)] if model is not None and model.reducers else None
  return Seen(stage.before, stage.evidence, ItemLayout(4, True), settings, stage.after.mask.shape[1], learned)


# --- The same for every method -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_shapes_masks_and_places(name):
  """K tokens, places rising, padding last and masked, every token accounted for."""
  history = make_history()
  encoded, (stage,) = stages_of(setting(name), history)
  length = ITEMS * 5
  (budget,) = schedule.budgets(setting(name), length, ItemLayout(4, True)).values()
  mask, positions = np.asarray(encoded.mask), np.broadcast_to(encoded.positions, encoded.mask.shape)
  assert encoded.hidden.shape[1] == budget == mask.shape[1]
  for row, real in enumerate(LENGTHS):
    left = REMAINING.get(name, lambda real: real if REDUCTIONS[name].tokens else real * 5)(real)
    assert mask[row].sum() == (min(budget, left) if name not in SOFT_SLOTS or not real else budget)
    assert mask[row, : mask[row].sum()].all(), "padding comes last"
    assert (np.diff(positions[row][mask[row]]) > 0).all()
  slot = np.broadcast_to(stage.after.slot, (len(LENGTHS), length))
  real = np.asarray(stage.before.mask)
  for row in range(len(LENGTHS)):
    here = slot[row][real[row]]
    assert ((here >= -1) & (here < budget)).all()
    assert mask[row][here[here >= 0]].all(), "no token is now where padding is"
    if REDUCTIONS[name].kind != "pool":
      assert set(here[here >= 0]) == set(np.flatnonzero(mask[row])), "every token that goes on stands for some"


@pytest.mark.parametrize("name", METHODS)
def test_sizes_add_up(name):
  _, (stage,) = stages_of(setting(name), make_history())
  real = np.asarray(stage.before.mask)
  slot = np.broadcast_to(stage.after.slot, real.shape)
  sizes = np.asarray(stage.after.sizes)
  if name in ("super_tokens", "semantic_tokens", "slimming", "latent_queries"):
    assert REDUCTIONS[name].kind == "pool" and np.isfinite(sizes).all() and (sizes >= 0).all()
    return
  for row in range(len(real)):
    here = slot[row][real[row]]
    expected = np.bincount(here[here >= 0], minlength=sizes.shape[1])
    np.testing.assert_array_equal(sizes[row], expected)
  if REDUCTIONS[name].kind == "merge" and name not in ("tome", "foveated"):  # which drop what finds no room
    np.testing.assert_array_equal(sizes.sum(1), real.sum(1))  # a merge loses nothing


@pytest.mark.parametrize("name", [name for name in METHODS if REDUCTIONS[name].unchanged])
def test_rows_that_fit_come_out_unchanged(name):
  """Rows of up to K tokens: the same states, order and mask, bit for bit."""
  _, (stage,) = stages_of(setting(name), make_history())
  fits = np.asarray(LENGTHS) * 5 <= 9
  assert fits.sum() == 2
  for field in ("hidden", "mask"):
    before, after = (np.asarray(getattr(tokens, field))[fits] for tokens in (stage.before, stage.after))
    real = np.asarray(stage.before.mask)[fits][:, :9]
    np.testing.assert_array_equal(after[real], before[:, :9][real])
  np.testing.assert_array_equal(
    np.asarray(stage.after.positions)[fits][real],
    np.broadcast_to(stage.before.positions, stage.before.mask.shape)[fits][:, :9][real],
  )


@pytest.mark.parametrize(
  ("name", "positions"),
  [(name, "original") for name in METHODS]
  + [(name, kind) for name in ("rastp", "item_mean") for kind in ("none", "item")],
)
def test_padding_changes_nothing(name, positions):
  """Rows padded to 6 or to 9 items give the same states at the same places, whatever the padding holds."""
  settings, short = setting(name, positions=positions), make_history()
  (a, _), (b, _) = stages_of(settings, short), stages_of(settings, beside_others(short))
  b = jax.tree.map(lambda x: x[: len(LENGTHS)], b)
  rows_a, rows_b = np.asarray(a.mask), np.asarray(b.mask)
  np.testing.assert_array_equal(rows_a.sum(1), rows_b.sum(1))
  place = lambda tokens, mask: np.broadcast_to(tokens.positions, mask.shape)[mask]
  np.testing.assert_array_equal(place(a, rows_a), place(b, rows_b))
  np.testing.assert_allclose(a.hidden[rows_a], b.hidden[rows_b], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_no_gradient_through_the_choice_or_from_padding(name):
  """States that were not chosen get exact zeros, padding too; the states that went on get some."""
  settings = setting(name)
  model = build(settings)
  _, (stage,) = stages_of(settings, make_history())
  method = REDUCTIONS[name]

  def energy(hidden):
    before = stage.before.replace(hidden=hidden)
    after = method.reduce(seen_at(stage, settings, model).replace(tokens=before))
    return jnp.sum(jnp.where(after.mask[..., None], after.hidden, 0.0) ** 2)

  gradient = np.asarray(jax.jit(jax.grad(energy))(stage.before.hidden))
  reached = (gradient != 0).any(-1)
  slot = np.broadcast_to(stage.after.slot, reached.shape)
  real = np.asarray(stage.before.mask)
  expected = real & (slot >= 0) if REDUCTIONS[name].kind != "pool" else real
  np.testing.assert_array_equal(reached, expected)


@pytest.mark.parametrize("name", ["rastp", "fuse", "item_mean"])
def test_no_gradient_reaches_padding_and_some_every_token(name):
  """Through the whole encoder, with a stage after its last block: what is dropped there was attended to before."""
  model = build(setting(name, after_block=(1,)))
  tokens = model.embed_history(make_history())

  def energy(hidden):
    encoded, _ = model.encode_tokens(tokens.replace(hidden=hidden))
    return jnp.sum(jnp.where(encoded.mask[..., None], encoded.hidden, 0.0) ** 3)

  gradient = np.asarray(jax.jit(jax.grad(energy))(tokens.hidden))
  mask = np.asarray(tokens.mask)
  assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any(-1).all()


@pytest.mark.parametrize("name", METHODS)
def test_slots_compose_over_stages(name):
  """What became of a token after two stages is what the second stage made of what the first one made of it."""
  names, budget = (name, 12) if name in BUDGETED else (f"recent+{name}", 28 if name in REMAINING else 12)
  settings = setting(names, after_block=(0, 1), keep_tokens=(budget, 5))
  _, stages = stages_of(settings, make_history())
  assert len(stages) == 2
  mask = np.asarray(stages[0].before.mask)
  first = np.broadcast_to(stages[0].after.slot, mask.shape)
  seen = seen_at(stages[1], settings, build(settings), 1)
  alone = jax.jit(lambda tokens: REDUCTIONS[name].reduce(seen.replace(tokens=tokens)))
  alone = alone(stages[1].before.replace(slot=None))
  second = np.broadcast_to(alone.slot, stages[1].before.mask.shape)
  followed = np.where(first < 0, -1, np.take_along_axis(second, np.maximum(first, 0), 1))
  np.testing.assert_array_equal(np.broadcast_to(stages[1].after.slot, mask.shape)[mask], followed[mask])
  outcome = np.asarray(dropped_at(jnp.asarray(mask), stages))
  assert (outcome[~mask] == NO_TOKEN).all() and set(np.unique(outcome[mask])) <= {SURVIVED, *range(1, len(stages) + 1)}
  np.testing.assert_array_equal(
    (outcome == SURVIVED)[mask], (np.broadcast_to(stages[-1].after.slot, mask.shape) >= 0)[mask]
  )


def test_what_two_stages_keep_stands_where_it_stood_in_the_history():
  settings = setting("rastp", after_block=(0, 1), keep_tokens=(12, 5))
  _, stages = stages_of(settings, make_history())
  after = stages[1].after
  slot = np.broadcast_to(after.slot, np.asarray(stages[0].before.mask).shape)
  rows, places = np.nonzero(slot >= 0)
  real = np.asarray(after.mask)[rows, slot[rows, places]]
  np.testing.assert_array_equal(np.asarray(after.positions)[rows, slot[rows, places]][real], places[real])
  assert (np.asarray(after.positions)[np.asarray(after.mask)] >= 5).any()


@pytest.mark.parametrize("name", METHODS)
def test_choices_are_deterministic(name):
  history = make_history()
  (first, _), (again, _) = stages_of(setting(name), history), stages_of(setting(name), history)
  np.testing.assert_array_equal(first.hidden, again.hidden)
  doubled, _ = stages_of(setting(name), beside_others(history))
  place = lambda tokens, mask: np.broadcast_to(tokens.positions, tokens.mask.shape)[mask]
  mask, second = np.asarray(first.mask), np.asarray(doubled.mask).copy()
  second[: len(LENGTHS)] = False
  np.testing.assert_array_equal(place(doubled, second), place(first, mask))


@pytest.mark.parametrize("name", [name for name in BUDGETED if REDUCTIONS[name].learned is None])
def test_a_budget_of_everything_compiles_to_the_dense_program(name):
  dense = lowered(ReductionConfig(method="none"))
  assert lowered(setting(name, keep_tokens=(30,))) == dense
  assert lowered(setting(name, keep_tokens=(29,))) != dense


@functools.cache
def lowered(settings):
  """The encoder's program before XLA's work on it, as text."""
  graph, params = nnx.split(build(settings))
  return jax.jit(lambda p: nnx.merge(graph, p).encode(make_history()).hidden).lower(params).as_text()


@pytest.mark.parametrize("name", ["rastp", "vatp", "head_vote", "change", "hired", "flowcut"])
def test_scoring_keeps_nothing_more_for_the_backward_pass(name):
  """Memory of the gradient: a block that is looked at needs hardly more than one that is not."""
  batch, length = 4, 96
  block = EncoderBlock(MODEL, rngs=nnx.Rngs(0))
  graph, params = nnx.split(block)
  mask, bias = jnp.ones((batch, length), bool), jnp.zeros((1, MODEL.num_heads, length, length))
  layout, settings = ItemLayout(4, True), ReductionConfig()
  positions = jnp.arange(length, dtype=jnp.int32)[None]

  def memory(score):
    def energy(params, hidden):
      out, known = nnx.merge(graph, params)(hidden, mask, bias, Dropout(None))
      return jnp.sum(out**2), score(Seen(Tokens(out, mask, positions), known, layout, settings, 32))

    compiled = jax.jit(jax.grad(energy, has_aux=True)).lower(params, jnp.ones((batch, length, MODEL.d_model))).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  plain, scored = memory(lambda seen: None), memory(REDUCTIONS[name].score)
  probabilities = 4 * batch * MODEL.num_heads * length * length
  assert plain > probabilities  # which the backward pass needs anyhow
  assert scored < plain + 0.1 * probabilities


@pytest.mark.parametrize("name", BEFORE)
def test_a_stage_before_block_0(name):
  encoded, (stage,) = stages_of(setting(name, after_block=(-1,)), make_history())
  (budget,) = schedule.budgets(setting(name, after_block=(-1,)), ITEMS * 5, ItemLayout(4, True)).values()
  assert stage.evidence is None and encoded.hidden.shape[1] == budget
  assert np.isfinite(np.asarray(encoded.hidden)).all()


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(BEFORE)))
def test_methods_that_need_attention_are_refused_before_block_0(name):
  with pytest.raises(InputError, match=f"where reduction.method='{name}' has no attention to look at"):
    config_lib.from_dict({"reduction": {"method": name, "after_block": (-1,)}})


# --- An oracle for each --------------------------------------------------------------------------------------------


def oracle_scores(name, stage, settings):
  """A method's score of real states, one token at a time, in float64; test_reduction_oracles.py has all methods."""
  known, tokens = stage.evidence, stage.before
  mask = np.asarray(tokens.mask)
  attention = np.asarray(known.attention, np.float64)
  hidden = np.asarray(tokens.hidden, np.float64)
  batch, heads, length = attention.shape[:3]
  scores = np.zeros(mask.shape)
  for row in range(batch):
    queries = [q for q in range(length) if mask[row, q] or settings.score_padded_queries]
    for k in range(length):
      per_head = [sum(attention[row, h, q, k] for q in queries) for h in range(heads)]
      if name in ("rastp", "fuse"):
        scores[row, k] = sum(per_head) * np.abs(hidden[row, k]).sum()
      elif name == "attention":
        scores[row, k] = sum(per_head)
    if name == "change":
      for u, a in ((known.normed, known.attended), (known.mlp_normed, known.transformed)):
        u, a = np.asarray(u, np.float64)[row], np.asarray(a, np.float64)[row]
        norm_u, norm_a = np.linalg.norm(u, axis=1), np.linalg.norm(a, axis=1)
        turned = np.exp(1 - (u * a).sum(1) / (norm_u * norm_a)) * mask[row]
        scores[row] += norm_a / norm_u * turned / max(turned.sum(), 1e-9)
  return np.where(mask, scores, -np.inf)


@pytest.mark.parametrize("padded_queries", [False, True])
@pytest.mark.parametrize("name", ["rastp", "attention"])
def test_scores_are_those_of_the_oracle(name, padded_queries):
  settings = setting(name, keep_tokens=(8,), score_padded_queries=padded_queries)
  _, (stage,) = stages_of(settings, make_history(3))
  ours = REDUCTIONS[name].score(seen_at(stage, settings))
  expected = oracle_scores(name, stage, settings)
  mask = np.asarray(stage.before.mask)
  np.testing.assert_allclose(np.asarray(ours)[mask], expected[mask], rtol=2e-5)
  order = np.argsort(-expected, axis=1, kind="stable")[:, :8]
  kept = np.sort(order, axis=1)
  np.testing.assert_array_equal(stage.after.mask, np.take_along_axis(mask, kept, 1))
  full = np.flatnonzero(mask.sum(1) >= 8)
  np.testing.assert_array_equal(np.asarray(stage.after.positions)[full], kept[full])
  gathered = np.take_along_axis(np.asarray(stage.before.hidden), kept[..., None], 1)
  np.testing.assert_array_equal(np.asarray(stage.after.hidden)[full], gathered[full])


def test_change_adds_up_over_blocks():
  """A note after block 0 and block 1 is the sum of both blocks' variations."""
  _, (stage,) = stages_of(setting("change", after_block=(1,)), make_history())
  model = build(setting("change", after_block=(0,)))
  _, (first,) = jax.jit(model.encode_stages)(make_history())
  mask = np.asarray(stage.before.mask)
  total = oracle_scores("change", first, setting("change")) + oracle_scores("change", stage, setting("change"))
  np.testing.assert_allclose(np.asarray(stage.before.note)[mask], total[mask], rtol=2e-5)


@pytest.mark.parametrize(
  ("names", "goes_on"),
  [
    ("hiprune+flowcut", False),
    ("newest_attention+hiprune", False),
    ("change+hired", False),
    ("change+transprune", True),  # which watch the same
    ("flowcut+flowcut", True),
  ],
)
def test_a_stage_goes_on_from_a_note_of_its_own_only(names, goes_on):
  settings = setting(names, after_block=(0, 1), keep_tokens=(20, 9))
  _, (first, second) = stages_of(settings, make_history())
  watch = REDUCTIONS[names.partition("+")[2]].watch
  assert watch is not None
  earlier = first.after.note if goes_on else None
  seen = seen_at(second, settings)
  expected = jax.jit(lambda: watch(seen.replace(tokens=second.before.replace(note=earlier))))()
  mask = np.asarray(second.before.mask)
  np.testing.assert_allclose(np.asarray(second.before.note)[mask], np.asarray(expected)[mask], rtol=1e-6)


def test_random_is_uniform_and_depends_on_the_history():
  kept = []
  for seed in range(40):
    _, (stage,) = stages_of(
      setting("random", after_block=(-1,), keep_tokens=(10,)), make_history(seed, lengths=(6,) * 8)
    )
    kept.append(np.asarray(stage.after.positions))
  counts = np.bincount(np.concatenate(kept).ravel(), minlength=30)
  assert abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean() * 2 / 3)
  assert len({tuple(row) for rows in kept for row in rows}) > 300  # 320 histories, hardly two choices alike


def test_fuse_is_the_oracles_mean():
  settings = setting("fuse", keep_tokens=(8,))
  _, (stage,) = stages_of(settings, make_history(5))
  scores = oracle_scores("fuse", stage, settings)
  hidden, mask = np.asarray(stage.before.hidden, np.float64), np.asarray(stage.before.mask)
  for row in np.flatnonzero(mask.sum(1) > 8):
    order = np.argsort(-scores[row], kind="stable")
    kept, rest = order[:7], [token for token in order[7:] if mask[row, token]]
    weights = scores[row][rest]
    fused = (weights[:, None] * hidden[row][rest]).sum(0) / weights.sum()
    expected = {int(token): hidden[row, token] for token in kept} | {int(rest[0]): fused}
    places = np.asarray(stage.after.positions)[row]
    assert places.tolist() == sorted(expected)
    for place, ours in zip(places, np.asarray(stage.after.hidden)[row], strict=True):
      np.testing.assert_allclose(ours, expected[int(place)], rtol=1e-4, atol=1e-5)
    assert sorted(np.asarray(stage.after.size)[row].tolist()) == [1.0] * 7 + [float(len(rest))]


@pytest.mark.parametrize("block", [-1, 0])
def test_item_mean_is_the_oracles_mean(block):
  _, (stage,) = stages_of(setting("item_mean", after_block=(block,)), make_history(7))
  hidden = np.asarray(stage.before.hidden, np.float64)
  for row, items in enumerate(LENGTHS):
    for item in range(items):
      mean = hidden[row, item * 5 : item * 5 + 5].mean(0)
      np.testing.assert_allclose(np.asarray(stage.after.hidden)[row, item], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(stage.after.mask)[row], np.arange(ITEMS) < items)
    np.testing.assert_array_equal(np.asarray(stage.after.sizes)[row, :items], 5.0)
  positions = np.broadcast_to(stage.after.positions, stage.after.mask.shape)
  np.testing.assert_array_equal(positions, np.broadcast_to(np.arange(ITEMS) * 5 + 4, positions.shape))


def test_item_mean_after_a_drop_pools_what_is_left():
  """Items that lost all their tokens leave no gap."""
  tokens = Tokens(
    hidden=jnp.arange(12.0).reshape(1, 6, 2),
    mask=jnp.asarray([[True] * 5 + [False]]),
    positions=jnp.asarray([[1, 2, 10, 13, 14, 15]]),
  )
  seen = Seen(tokens, None, ItemLayout(4, True), ReductionConfig(), 4)
  pooled = merge.pool_items(seen, jnp.ones((1, 6)), 4)
  np.testing.assert_array_equal(pooled.mask, [[True, True, False, False]])
  np.testing.assert_allclose(pooled.hidden[0, :2], [[1.0, 2.0], [6.0, 7.0]])
  np.testing.assert_array_equal(pooled.positions[0, :2], [2, 14])
  np.testing.assert_array_equal(pooled.slot, [[0, 0, 1, 1, 1, 2]])


def test_items_are_pooled_also_where_few_tokens_are_left():
  """The newest five tokens are one item: they are pooled, though the whole history has more items than that."""
  settings = ReductionConfig(method="recent+item_mean", after_block=(0, 1), keep_tokens=(5, 1))
  _, (dropped, pooled) = stages_of(settings, make_history())
  left = np.asarray(dropped.after.mask).sum(1)
  np.testing.assert_array_equal(left, [5 * (items > 0) for items in LENGTHS])
  np.testing.assert_array_equal(np.asarray(pooled.after.mask).sum(1), left // 5)
  np.testing.assert_array_equal(np.asarray(pooled.after.sizes)[:, 0], left)


@pytest.mark.parametrize("name", SOFT_SLOTS)
def test_slots_have_weights_for_every_budget(name):
  """A budget above them is refused; with as many as are asked for the model runs."""
  values = {"data": {"max_items": 60}, "reduction": {"method": name, "keep_ratio": (0.5,)}}
  with pytest.raises(InputError, match=f"reduction.{name}.most=128 is below the 150 tokens .* raise it to 150"):
    config_lib.from_dict(values)
  drawn = {"method": name, "keep_ratio": (0.5,), "random_keep_ratios": (0.1,), "after_block": (0,)}
  with pytest.raises(InputError, match="raise it to 150"):
    config_lib.from_dict({**values, "reduction": drawn})
  config_lib.from_dict({**values, "reduction": {**values["reduction"], "keep_ratio": (1.0,)}})  # no stage at all
  values["reduction"][name] = {"most": 150}
  settings = dataclasses.replace(config_lib.from_dict(values).reduction, after_block=(0,))
  encoded, _ = stages_of(settings, make_history(items=60, lengths=(60, 1)))
  assert encoded.hidden.shape[1] == 150 and np.isfinite(np.asarray(encoded.hidden)).all()
  sizes = {leaf.shape for leaf in jax.tree.leaves(nnx.state(build(setting(name)), nnx.Param))}
  assert any(128 in shape for shape in sizes) and not any(150 in shape for shape in sizes)  # older weights fit


# --- Settings of the reduction -------------------------------------------------------------------------------------


def random_tokens(length=15, batch=4, width=5):
  rng = np.random.default_rng(0)
  lengths = np.asarray([0, length, 7, 11])
  hidden = jnp.asarray(rng.normal(size=(batch, length, width)).astype(np.float32))
  return Tokens(hidden, jnp.asarray(np.arange(length) < lengths[:, None]), jnp.arange(length, dtype=jnp.int32)[None])


def test_ties_keep_the_lower_place():
  tokens = random_tokens()
  seen = Seen(tokens, None, ItemLayout(4, True), ReductionConfig(), 4)
  kept = merge.keep(tokens, select.top_k(seen, jnp.ones(tokens.mask.shape), 4))
  np.testing.assert_array_equal(kept.positions, np.tile(np.arange(4), (4, 1)))


def test_separators_survive_where_asked():
  tokens = random_tokens()
  scores = jnp.broadcast_to(jnp.where(tokens.positions % 5 == 4, 0.0, 1.0), tokens.mask.shape)
  for protected in (True, False):
    seen = Seen(tokens, None, ItemLayout(4, True), ReductionConfig(prune_separators=not protected), 4)
    kept = set(np.asarray(select.top_k(seen, scores, 6))[1].tolist())
    assert ({4, 9, 14} <= kept) == protected


def test_an_unknown_method_is_refused():
  with pytest.raises(InputError, match="reduction.method='rasp' is not known: expected one of none, rastp, .*'rastp'"):
    config_lib.from_dict({"reduction": {"method": "rasp"}})


@pytest.mark.parametrize(
  ("name", "others", "sentence"),
  [
    *(
      (name, {"semantic_ids": {"collisions": "reassign"}}, "semantic_ids.collisions='reassign'") for name in LAST_LEVEL
    ),
    ("recent+codes_first", {"semantic_ids": {"collisions": "reassign"}}, "expected 'extra_level'"),
    ("coarse_by_age", {"reduction": {"prune_separators": False}}, "prune_separators=False .* settles itself"),
  ],
)
def test_methods_are_refused_where_another_setting_takes_what_they_need(name, others, sentence):
  several = {"after_block": (0, 1), "keep_ratio": (0.5, 0.25)} if "+" in name else {}
  values = {"method": name, **several}
  config_lib.from_dict({"reduction": values})
  with pytest.raises(InputError, match=sentence):
    config_lib.from_dict({**others, "reduction": {**values, **others.get("reduction", {})}})


@pytest.mark.parametrize(
  ("settings", "length", "expected"),
  [
    (ReductionConfig(after_block=(1,), keep_ratio=(1 / 3,)), 150, {1: 50}),
    (ReductionConfig(after_block=(0, 2), keep_ratio=(0.5, 0.25)), 100, {0: 50, 2: 25}),
    (ReductionConfig(after_block=(0,), keep_tokens=(50,)), 40, {}),
    (ReductionConfig(after_block=(0,), keep_ratio=(1.0,)), 40, {}),
    (ReductionConfig(after_block=(0,), keep_ratio=(0.01,)), 40, {0: 1}),
    (ReductionConfig(method="none"), 150, {}),
    (ReductionConfig(method="item_mean", after_block=(-1,)), 150, {-1: 30}),
    (ReductionConfig(method="recent+item_mean", after_block=(0, 1), keep_ratio=(0.5, 1.0)), 100, {0: 50, 1: 20}),
    (ReductionConfig(method="recent+item_mean", after_block=(0, 1), keep_ratio=(0.1, 1.0)), 100, {0: 10, 1: 10}),
    (ReductionConfig(method="item_sum", after_block=(-1, 0), keep_ratio=(1.0, 1.0)), 100, {-1: 20}),
    (ReductionConfig(method="item_mean+coarse_by_age", after_block=(-1, 0), keep_ratio=(1.0, 1.0)), 20, {-1: 4}),
  ],
)
def test_budgets(settings, length, expected):
  assert schedule.budgets(settings, length, ItemLayout(4, True)) == expected


@pytest.mark.parametrize(
  ("settings", "expected"),
  [
    ({"keep_ratio": (0.5, 0.5)}, [1]),  # "half, then half of that", which it is not
    ({"keep_ratio": (0.5, 0.25)}, []),
    ({"keep_tokens": (100, 90)}, [0]),  # of the longest; the next stage shortens it
    ({"keep_tokens": (50, 10)}, []),  # the shorter one stays whole after block 0
    ({"method": "item_mean", "keep_ratio": (1.0, 1.0)}, [1]),
    ({"method": "none"}, []),
    ({"after_block": (0,), "keep_ratio": (1.0,), "random_keep_ratios": (1.0, 0.5)}, []),
  ],
)
def test_stages_that_shorten_nothing(settings, expected):
  config = ReductionConfig(**{"after_block": (0, 1), **settings})
  assert schedule.idle_blocks(schedule.drawn(config), (40, 100), ItemLayout(4, True)) == expected


def test_original_positions_are_the_biases_of_the_kept_places():
  """Dropping nothing but one padded token leaves the dense model's answer."""
  inputs = jnp.pad(make_history(), ((0, 0), (0, 1), (0, 0)), constant_values=-1)
  dense = jax.jit(build(ReductionConfig(method="none")).encode)(inputs)
  stages = setting("rastp", after_block=(0,), keep_tokens=(30,))
  kept = jax.jit(build(stages).encode)(inputs)
  mask = np.asarray(kept.mask)
  np.testing.assert_allclose(kept.hidden[mask], dense.hidden[np.asarray(dense.mask)], rtol=1e-5, atol=1e-5)
  placeless = jax.jit(build(dataclasses.replace(stages, positions="none")).encode)(inputs)
  assert np.abs(placeless.hidden[mask] - kept.hidden[mask]).max() > 1e-3


def test_places_of_items_are_those_of_their_tokens():
  """With positions=item, tokens of one item stand at one place, and items as far apart as they are."""
  by_item = build(setting("rastp", after_block=(0,), keep_tokens=(7,), positions="item"))
  by_token = build(setting("rastp", after_block=(0,), keep_tokens=(7,)))
  tokens = by_item.embed_history(make_history())
  moved = tokens.replace(positions=tokens.positions // by_item.layout.item_length)
  bias = np.asarray(by_item._bias(tokens, True))
  np.testing.assert_array_equal(bias, by_token._bias(moved, True))
  assert (bias[..., 0, :] != bias[..., :1, 0:1]).any()


def test_scores_ignore_padded_queries_and_dropout_unless_asked():
  model_config = dataclasses.replace(MODEL, attention_dropout=0.5, dropout=0.0, mlp_dropout=0.0)
  tokens = build(ReductionConfig()).embed_history(make_history())

  def received(key=None, **flags):
    settings = setting("attention", after_block=(0,), keep_tokens=(7,), **flags)
    model = build(settings, model_config)

    def scored(tokens):
      _, (stage,) = model.encode_tokens(tokens, key=key)
      return REDUCTIONS["attention"].score(seen_at(stage, settings))

    return np.asarray(jax.jit(scored)(tokens))

  real = np.asarray(tokens.mask).sum(1)
  some = real > 0  # in a row of padding every logit is masked, and attention is spread evenly over padding
  np.testing.assert_allclose(received().sum(1)[some], 2 * real[some], rtol=1e-5)  # each head of a real query gives 1
  np.testing.assert_allclose(received(score_padded_queries=True).sum(1), 2 * tokens.mask.shape[1], rtol=1e-5)
  np.testing.assert_array_equal(received(jax.random.key(0)), received(jax.random.key(1)))
  noisy = [received(jax.random.key(seed), score_dropout=True) for seed in (0, 1)]
  assert np.abs(noisy[0] - noisy[1]).max() > 0.1


def test_proportional_attention_counts_merged_tokens_as_often_as_they_stand_for():
  """A merged token attends and is attended like as many equal tokens: the same states as before the merge."""
  sizes = jnp.asarray([[1.0, 3.0, 1.0]])
  rng = np.random.default_rng(0)
  states = jnp.asarray(rng.normal(size=(1, 3, MODEL.d_model)).astype(np.float32))
  block = EncoderBlock(MODEL, rngs=nnx.Rngs(1))
  repeated = jnp.repeat(states, np.asarray([1, 3, 1]), axis=1)
  full, _ = block(repeated, jnp.ones((1, 5), bool), None, Dropout(None))
  model = build(setting("item_mean", proportional=True))
  tokens = Tokens(states, jnp.ones((1, 3), bool), jnp.arange(3, dtype=jnp.int32)[None], size=sizes)
  bias = dataclasses.replace(model.reduction, positions="none")
  model.reduction = bias
  merged, _ = block(states, tokens.mask, model._bias(tokens, True), Dropout(None))
  np.testing.assert_allclose(merged[0], np.asarray(full)[0, [0, 1, 4]], rtol=1e-5, atol=1e-5)


def test_every_method_says_what_it_is():
  for name, method in REDUCTIONS.items():
    assert method.summary and method.summary == method.summary.strip() and not method.summary.endswith(".")
    assert name == name.lower()
