"""Every method of the registry beside its formula in NumPy, one row and one token at a time.

Methods are called on made-up evidence, without a model: what they compute depends on nothing else.
"""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rastp_jax.config import ModelConfig, ReductionConfig
from rastp_jax.reduction import learned, merge, scores
from rastp_jax.reduction.methods import REDUCTIONS
from rastp_jax.reduction.select import DecayOptions
from rastp_jax.reduction.tokens import Evidence, ItemLayout, Seen, Tokens

P, K, D, H, E = 5, 8, 6, 2, 3  # positions per item, budget, widths
ITEMS = (4, 2, 1, 0)  # more than K tokens twice, fewer, none
# Rules that begin at an age of 15, or for a budget of two anchors and more.
LONG = {"items": (17, 4, 2, 0), "budget": 40}
OF_LONG = {"quota_by_age": LONG, "hiprune": LONG, "coarse_by_age": LONG}


def make_seen(note=False, items=ITEMS, budget=K, **settings):
  """Random states and evidence of four rows."""
  rng, length = np.random.default_rng(0), max(items) * P
  mask = np.arange(length) < P * np.asarray(items)[:, None]
  normal = lambda *shape: jnp.asarray(rng.normal(size=(len(items), *shape)).astype(np.float32))
  logits = np.where(mask[:, None, None, :], np.asarray(normal(H, length, length)), -1e30)
  attention = jax.nn.softmax(jnp.asarray(logits), axis=-1)
  states = {name: normal(length, D) for name in ("before", "normed", "attended", "mlp_normed", "transformed", "after")}
  heads = {name: normal(length, H, E) for name in ("queries", "keys", "values")}
  evidence = Evidence(attention=attention, attention_dropped=attention, **states, **heads)
  positions = jnp.arange(length, dtype=jnp.int32)[None]
  tokens = Tokens(states["after"], jnp.asarray(mask), positions, note=jnp.abs(normal(length)) if note else None)
  return Seen(tokens, evidence, ItemLayout(P - 1, True), ReductionConfig(keep_tokens=(budget,), **settings), budget)


def rows_of(seen):
  """Of every row what belongs to its real tokens, in float64."""
  double = lambda x, row, n: np.asarray(x[row], np.float64)[:n]
  for row, n in enumerate(np.asarray(seen.tokens.mask).sum(1).tolist()):
    items = n // P
    facts: dict[str, Any] = {
      name: double(getattr(seen.evidence, name), row, n)
      for name in Evidence.__dataclass_fields__
      if "att" not in name and name != "conditions"
    }
    facts["attended"] = double(seen.evidence.attended, row, n)
    facts["a"] = np.asarray(seen.evidence.attention[row], np.float64)[:, :n, :n]  # head, query, key
    facts["x"] = double(seen.tokens.hidden, row, n)
    facts["note"] = None if seen.tokens.note is None else double(seen.tokens.note, row, n)
    place = np.arange(n)
    facts |= {
      "k": seen.budget,
      "n": n,
      "items": items,
      "item": place // P,
      "level": place % P,
      "age": items - 1 - place // P,
    }
    yield row, types.SimpleNamespace(**facts)


def received(r, voters=None):
  """Attention that each token gets from the voters, all heads."""
  voters = range(r.n) if voters is None else voters
  return np.array([sum(r.a[h, q, k] for h in range(H) for q in voters) for k in range(r.n)])


def part(x):
  return x / x.sum() if len(x) else x


def rank(x):
  """0 for the largest; of equal ones the earlier one comes first."""
  places = np.empty(len(x), int)
  places[np.argsort(-x, kind="stable")] = np.arange(len(x))
  return places


def rank_in_item(r, x):
  return np.array([sum(x[j] > x[i] for j in range(r.n) if r.item[j] == r.item[i]) for i in range(r.n)])


def rastp(r):
  return received(r) * np.abs(r.x).sum(1)


def newest_item(r):
  return [q for q in range(r.n) if r.age[q] == 0]


def own_votes(r):
  return np.array([sum(r.a[h, k, k] for h in range(H)) for k in range(r.n)])


def recent(r):
  return np.arange(r.n, dtype=float)


def moved(r):
  total = np.zeros(r.n)
  for u, a in ((r.normed, r.attended), (r.mlp_normed, r.transformed)):
    turned = np.exp(1 - (u * a).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(a, axis=1))
    total += np.linalg.norm(a, axis=1) / np.linalg.norm(u, axis=1) * part(turned)
  return total


def flow(r):
  last = r.n - 1
  alike = np.zeros(r.n)
  for h in range(H):
    alike += part(np.exp(r.values[:, h] @ r.values[last, h])) / H
  return (part(received(r, [last])) + part(alike)) * np.abs(r.values.mean(1)).sum(1)


def hiprune(r, alpha=0.3):
  early = received(r) if r.note is None else r.note
  anchors = [i for i in range(r.n) if rank(early)[i] < max(1, round(alpha * r.k / 5))]
  score = part(received(r))
  for i in range(r.n):
    near = [a for a in anchors if abs(a - i) == P or (abs(a - i) == 1 and r.item[a] == r.item[i])]
    score[i] += 4.0 if i in anchors else 2.0 if near else 0.0
  return score


def hired(r):
  early = received(r, newest_item(r)) if r.note is None else r.note
  top = [i for i in range(r.n) if rank(early)[i] < r.n / 2]
  quota = np.array([K * sum(r.item[j] == r.item[i] for j in top) / len(top) for i in range(r.n)])
  return quota - rank_in_item(r, received(r))


def vatp(r, voters=slice(None)):
  return sum(r.a[h][voters].sum(0) * np.abs(r.values[:, h]).sum(1) for h in range(H))


def votes_by_head(r, voters=slice(None), newest=1e3):
  score = np.where(r.age == 0, newest, 0.0)
  for h in range(H):
    score += part(np.exp(r.keys[:, h] @ r.queries[voters, h].mean(0)))
  return score


def cosine(x):
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  return unit @ unit.T


def taken(r, chosen):
  """The first one taken scores K."""
  score = np.zeros(r.n)
  score[chosen] = K - np.arange(len(chosen))
  return score


def divprune(r):
  apart = 1 - cosine(r.x)
  others = apart + np.where(np.eye(r.n, dtype=bool), np.inf, 0)
  chosen = [int(others.min(1).argmax())]
  while len(chosen) < min(K, r.n):
    chosen.append(max((j for j in range(r.n) if j not in chosen), key=lambda j: min(apart[j, s] for s in chosen)))
  return taken(r, chosen)


def max_sum(r):
  apart = 1 - cosine(r.x)
  chosen = [int(apart.sum(1).argmax())]
  while len(chosen) < min(K, r.n):
    chosen.append(max((j for j in range(r.n) if j not in chosen), key=lambda j: sum(apart[j, s] for s in chosen)))
  return taken(r, chosen)


def dpp(r, relevance, count):
  """Greedy MAP by determinants, from their definition."""
  kernel = relevance[:, None] * cosine(r.x) * relevance[None, :]
  volume = lambda chosen: round(np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1], 9)  # equal ones: the first
  chosen = []
  while len(chosen) < count:
    chosen.append(max((j for j in range(r.n) if j not in chosen), key=lambda j: volume([*chosen, j])))
  return chosen


def peaks(r):
  apart = np.sqrt(((r.x[:, None] - r.x[None]) ** 2).sum(-1) / D)
  density = np.array([np.exp(-(np.sort(np.delete(apart[i], i))[:5] ** 2).mean()) for i in range(r.n)])
  score = np.zeros(r.n)
  for i in range(r.n):
    denser = [apart[i, j] for j in range(r.n) if density[j] > density[i]]
    score[i] = density[i] * (min(denser) if denser else apart[i].max())
  return score


def a2sf(r, alpha=0.7):
  return sum(alpha ** r.age[q] * r.a[h, q] for h in range(H) for q in range(r.n))


SCORES = {
  "rastp": rastp,
  "rastp_recent": lambda r: r.n * part(rastp(r)) + np.arange(r.n) / max(r.n - 1, 1),
  "rastp_codes": lambda r: np.where(r.level < P - 2, 10.0, 0.0) + part(rastp(r)),
  "rastp_items": lambda r: np.array([sum(rastp(r)[j] for j in range(r.n) if r.item[j] == i) for i in r.item]),
  "quota_by_age": lambda r: (
    np.array([P if age < 3 else 2 if age < 8 else 1 for age in r.age]) - rank_in_item(r, rastp(r)) + recent(r) / r.n
  ),
  "attention": received,
  "attention_of_others": lambda r: received(r) - own_votes(r),
  "l1_norm": lambda r: np.abs(r.x).sum(1),
  "l2_norm": lambda r: np.sqrt((r.x**2).sum(1)),
  "recent": recent,
  "sinks": lambda r: recent(r) + np.where(r.item == 0, 1e6, 0.0),
  "separators_first": lambda r: recent(r) + np.where(r.level == P - 1, 1e6, 0.0),
  "coarse_first": lambda r: recent(r) / r.n - r.level,
  "codes_first": lambda r: recent(r) + np.where(r.level < P - 2, 1e6, 0.0),
  "vatp": vatp,
  "ats": lambda r: received(r, [r.n - 1]) * np.sqrt((r.values**2).sum((1, 2))),
  "newest_attention": lambda r: received(r, [r.n - 1]) if r.note is None else r.note,
  "change": lambda r: moved(r) if r.note is None else r.note,
  "transprune": lambda r: part(moved(r) if r.note is None else r.note) + part(received(r, newest_item(r))),
  "head_vote": votes_by_head,
  "hiprune": hiprune,
  "hired": hired,
  "flowcut": lambda r: flow(r) if r.note is None else r.note,
  "a2sf": a2sf,
  "divprune": divprune,
  "max_sum": max_sum,
  "clusters": peaks,
}
WATCHES = {
  "change": lambda r: moved(r) + (0.0 if r.note is None else r.note),
  "transprune": lambda r: moved(r) + (0.0 if r.note is None else r.note),
  "newest_attention": lambda r: received(r, [r.n - 1]) + (0.0 if r.note is None else r.note),
  "flowcut": lambda r: flow(r) if r.note is None else 0.5 * r.note + 0.5 * flow(r),
  "hiprune": lambda r: received(r) if r.note is None else r.note,
  "hired": lambda r: received(r, newest_item(r)) if r.note is None else r.note,
}


def test_every_method_has_an_oracle():
  drops = {name for name, method in REDUCTIONS.items() if method.merge is merge.drop and name != "none"}
  elsewhere = {"given", "random", "cdpruner", "dpp_recent"}  # the caller's; a hash; by determinants, below
  assert drops - elsewhere == set(SCORES) - {"clusters"}
  assert set(REDUCTIONS) - drops - {"none"} == set(MERGES) | {"fuse", "learned_score"}  # tests of their own
  assert set(WATCHES) == {name for name, method in REDUCTIONS.items() if method.watch is not None}


@pytest.mark.parametrize("note", [False, True])
@pytest.mark.parametrize("name", SCORES)
def test_scores(name, note):
  """The formula token by token, and, where the others are dropped, the best K in their old order."""
  seen, method = make_seen(note, **OF_LONG.get(name, {})), REDUCTIONS[name]
  ours = np.asarray(jax.jit(lambda: method.score(seen))())
  after = jax.jit(lambda: method.reduce(seen))() if method.merge is merge.drop else None
  for row, r in rows_of(seen):
    if not r.n:
      continue
    expected = SCORES[name](r)
    np.testing.assert_allclose(ours[row, : r.n], expected, rtol=2e-5, atol=1e-6)
    if after is not None:
      kept = sorted(np.argsort(-expected, kind="stable")[: r.k])
      np.testing.assert_array_equal(np.asarray(after.positions)[row][np.asarray(after.mask)[row]], kept)
      np.testing.assert_array_equal(np.asarray(after.hidden)[row, : len(kept)], seen.tokens.hidden[row][np.array(kept)])


@pytest.mark.parametrize("note", [False, True])
@pytest.mark.parametrize("name", WATCHES)
def test_notes(name, note):
  seen = make_seen(note)
  watch = REDUCTIONS[name].watch
  assert watch is not None
  ours = np.asarray(jax.jit(lambda: watch(seen))())
  for row, r in rows_of(seen):
    if r.n:
      np.testing.assert_allclose(ours[row, : r.n], WATCHES[name](r), rtol=2e-5, atol=1e-6)


OTHER_OPTIONS = {  # a method's options at other values than their defaults
  "rastp_recent": (
    scores.RecencyOptions(weight=3.0),
    lambda r: r.n * part(rastp(r)) + 3.0 * np.arange(r.n) / max(r.n - 1, 1),
  ),
  "sinks": (scores.SinkOptions(items=2), lambda r: recent(r) + np.where(r.item < 2, 1e6, 0.0)),
  "hiprune": (scores.HiPruneOptions(alpha=1.0), lambda r: hiprune(r, 1.0)),
  "a2sf": (scores.A2sfOptions(alpha=0.4), lambda r: a2sf(r, 0.4)),
  "head_vote": (scores.HeadVoteOptions(keep_newest=False), lambda r: votes_by_head(r, newest=0.0)),
}


@pytest.mark.parametrize("name", OTHER_OPTIONS)
def test_options_change_what_they_say(name):
  options, formula = OTHER_OPTIONS[name]
  seen = make_seen(options=(options,), **OF_LONG.get(name, {}))
  ours = np.asarray(jax.jit(lambda: REDUCTIONS[name].score(seen))())
  for row, r in rows_of(seen):
    if r.n:
      np.testing.assert_allclose(ours[row, : r.n], formula(r), rtol=2e-5, atol=1e-6)


def own_votes_of(r, voters):
  return np.array([r.a[:, k, k].sum() if k in voters else 0.0 for k in range(r.n)])


VOTED = {
  "attention": received,
  "attention_of_others": lambda r, voters: received(r, voters) - own_votes_of(r, voters),
  "rastp": lambda r, voters: received(r, voters) * np.abs(r.x).sum(1),
  "vatp": vatp,
  "head_vote": votes_by_head,
}


@pytest.mark.parametrize("voters", ["last_item", "last"])
@pytest.mark.parametrize("name", VOTED)
def test_voters(name, voters):
  seen = make_seen(voters=voters)
  ours = np.asarray(jax.jit(lambda: REDUCTIONS[name].score(seen))())
  for row, r in rows_of(seen):
    if r.n:
      chosen = newest_item(r) if voters == "last_item" else [r.n - 1]
      np.testing.assert_allclose(ours[row, : r.n], VOTED[name](r, chosen), rtol=2e-5, atol=1e-6)


def test_ages_and_levels_go_before_recency_in_histories_of_any_length():
  """A recency that grows with the place would overrule quotas from 1,000 positions on, levels from 10,000."""
  items = 300
  quotas = np.array([P if age < 3 else 2 if age < 8 else 1 for age in reversed(range(items))])
  seen = make_seen(items=(items,), budget=int(quotas.sum()))
  after = jax.jit(lambda: REDUCTIONS["quota_by_age"].reduce(seen))()
  np.testing.assert_array_equal(np.bincount(np.asarray(after.positions)[0] // P, minlength=items), quotas)

  items = 2500
  places = jnp.arange(items * P, dtype=jnp.int32)[None]
  tokens = Tokens(jnp.zeros((1, items * P, 1)), jnp.ones(places.shape, bool), places)
  seen = Seen(tokens, None, ItemLayout(P - 1, True), ReductionConfig(keep_tokens=(items,)), items)
  after = jax.jit(lambda: REDUCTIONS["coarse_first"].reduce(seen))()
  np.testing.assert_array_equal(np.asarray(after.positions)[0], np.arange(items) * P)


def test_votes_of_others_are_dropped_as_all_are():
  """With score_dropout a token's own vote that dropout took is not taken off once more."""
  seen = make_seen(score_dropout=True)
  kept = np.random.default_rng(1).random(seen.known.attention.shape) < 0.5
  dropped = jnp.where(kept, 2.0 * seen.known.attention, 0.0)
  seen = dataclasses.replace(seen, evidence=dataclasses.replace(seen.known, attention_dropped=dropped))
  ours = np.asarray(jax.jit(lambda: scores.attention_of_others(seen))())
  for row, r in rows_of(seen):
    r.a = np.asarray(dropped, np.float64)[row][:, : r.n, : r.n]
    if r.n:
      np.testing.assert_allclose(ours[row, : r.n], received(r) - own_votes(r), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cdpruner", "dpp_recent"])
def test_determinantal_processes(name):
  """The first choices have the largest determinants; of more vectors than dimensions every determinant is 0."""
  seen = dataclasses.replace(make_seen(options=(DecayOptions(decay=0.5),)), budget=4)
  ours = np.asarray(jax.jit(lambda: REDUCTIONS[name].score(seen))())
  for row, r in rows_of(seen):
    if r.n:
      score = rastp(r)
      scaled = (score - score.min() + 1e-3) / (score.max() - score.min() + 1e-3)
      expected = dpp(r, scaled if name == "cdpruner" else 0.5**r.age, 4)
      np.testing.assert_array_equal(np.argsort(-ours[row], kind="stable")[:4], expected)
      np.testing.assert_array_equal(ours[row][expected], [4, 3, 2, 1])
      assert set(np.flatnonzero(ours[row])) == set(expected)


@pytest.mark.parametrize("name", ["rastp", "recent"])
def test_of_more_separators_than_the_budget_the_best_are_kept(name):
  seen = make_seen(items=(12, 3), prune_separators=False)
  after = jax.jit(lambda: REDUCTIONS[name].reduce(seen))()
  for row, r in rows_of(seen):
    score = SCORES[name](r)
    order = sorted(range(r.n), key=lambda i: (r.level[i] != P - 1, -score[i]))  # noqa: B023
    np.testing.assert_array_equal(np.asarray(after.positions)[row][np.asarray(after.mask)[row]], sorted(order[:K]))


@pytest.mark.parametrize("name", ["divprune", "max_sum"])
def test_protected_separators_leave_room_for_the_first_choices(name):
  seen = make_seen(prune_separators=False)
  after = jax.jit(lambda: REDUCTIONS[name].reduce(seen))()
  for row, r in rows_of(seen):
    if r.n:
      score = np.where(r.level == P - 1, np.inf, SCORES[name](r))
      kept = sorted(np.argsort(-score, kind="stable")[:K])
      np.testing.assert_array_equal(np.asarray(after.positions)[row][np.asarray(after.mask)[row]], kept)


# --- Merges: which old tokens a new one is made of, with what weight; its place -------------------------------------


def assigned(r, score):
  """Centres and those that are most like them."""
  centres = sorted(np.argsort(-score, kind="stable")[:K])
  likeness = cosine(r.x)
  groups = {c: [c] for c in centres}
  for i in set(range(r.n)) - set(centres):
    groups[max(centres, key=lambda c: likeness[i, c])].append(i)
  return [({i: 1.0 for i in members}, centre) for centre, members in groups.items()]


def paired(r):
  likeness = cosine(r.keys.mean(1))
  odd = [j for j in range(r.n) if r.item[j] % 2]
  best = {i: max(odd, key=lambda j: likeness[i, j]) for i in range(r.n) if r.item[i] % 2 == 0} if odd else {}
  joins = sorted(best, key=lambda i: -likeness[i, best[i]])[: max(r.n - K, 0)]
  stays = [i for i in range(r.n) if i not in joins][-K:]
  return [({i: 1.0 for i in (one, *(j for j in joins if best[j] == one))}, one) for one in stays]


def runs(r):
  groups = {}
  for i in range(r.n):
    groups.setdefault(i if r.n <= K else i * K // r.n, {})[i] = 1.0
  return [(members, max(members)) for members in groups.values()]


def foveated(r):
  if r.n <= K:
    return [({i: 1.0}, i) for i in range(r.n)]
  whole = (K - r.items) // (P - 1)
  groups = {}
  for i in range(r.n):
    groups.setdefault(i if r.age[i] < whole else -1 - int(r.item[i]), {})[i] = 1.0
  return sorted(((members, max(members)) for members in groups.values()), key=lambda group: group[1])


def by_item(r, weights):
  return [({i: weights[i] for i in range(r.n) if r.item[i] == one}, one * P + P - 1) for one in range(r.items)]


def kept_levels(r, quota):
  return [({i: 1.0}, i) for i in range(r.n) if r.level[i] < quota(r.age[i])]


MERGES = {
  "no_collision_code": lambda r: [({i: 1.0}, i) for i in range(r.n) if r.level[i] != P - 2],
  "coarse_by_age": lambda r: kept_levels(r, lambda age: P if age < 5 else 2 if age < 15 else 1),
  "assign_recent": lambda r: assigned(r, recent(r)),
  "assign_rastp": lambda r: assigned(r, rastp(r)),
  "clusters": lambda r: assigned(r, peaks(r)),
  "tome": paired,
  "average": runs,
  "foveated": foveated,
  "item_mean": lambda r: by_item(r, np.ones(r.n)),
  "item_sum": lambda r: by_item(r, np.ones(r.n)),
  "item_attention": lambda r: by_item(r, received(r) + 1e-6),
  "item_query": lambda r: by_item(r, np.exp(np.tanh(r.x) @ r.net.vector[...])),
  "item_projection": lambda r: by_item(r, np.ones(r.n)),
  "super_tokens": lambda r: [(dict(enumerate(w)), item * P + P - 1) for item, w in enumerate(shared_items(r))],
  "semantic_tokens": lambda r: [(dict(enumerate(w)), item * P + P - 1) for item, w in enumerate(asking_items(r))],
  "latent_queries": lambda r: slots(r, r.net.queries[...][:K] @ r.x.T),
  "slimming": lambda r: slots(r, slimming_logits(r)),
}


def shared_items(r):
  centres = np.stack([r.x[r.item == one].mean(0) for one in range(r.items)])
  weights = np.zeros((r.items, r.n))
  for i in range(r.n):
    near = [one for one in range(r.items) if abs(one - r.item[i]) <= 1]
    weights[near, i] = part(np.exp([r.x[i] @ centres[one] / D**0.5 for one in near]))
  return weights


def asking_items(r):
  weights = np.zeros((r.items, r.n))
  for one in range(r.items):
    query = r.queries[r.item == one].mean(0)
    for h in range(H):
      weights[one] += part(np.exp(r.keys[:, h] @ query[h])) / H
  return weights


def slimming_logits(r):
  net, x = r.net, r.x / np.sqrt((r.x**2).mean(1, keepdims=True) + 1e-6) * np.asarray(r.net.norm.scale[...])
  inner = np.asarray(jax.nn.gelu(x @ np.asarray(net.inner.kernel[...]) + np.asarray(net.inner.bias[...])))
  needed = inner @ np.asarray(net.outer.kernel[...]) + np.asarray(net.outer.bias[...])
  return needed[:, :K].T * np.asarray(net.scale[...])


def slots(r, logits):
  weights = np.exp(np.asarray(logits, np.float64))
  return [(dict(enumerate(row / row.sum())), place) for place, row in enumerate(weights)]


@pytest.mark.parametrize("name", MERGES)
def test_merges(name):
  """Each new token is the weighted mean of its members, at its place; it stands for as many as it has."""
  method, seen = REDUCTIONS[name], make_seen(**OF_LONG.get(name, {}))
  net: Any = None
  if method.learned is not None:
    net = method.learned(ModelConfig(d_model=D), seen.layout, rngs=nnx.Rngs(0))
  budget = K if method.tokens is None else method.tokens(seen.tokens.mask.shape[1], seen.layout)
  seen = dataclasses.replace(seen, budget=budget, learned=net)
  after = jax.jit(lambda: method.reduce(seen))()
  positions = np.broadcast_to(after.positions, after.mask.shape)
  for row, r in rows_of(seen):
    r.net = net
    expected = MERGES[name](r) if r.n else []
    assert np.asarray(after.mask)[row].sum() == len(expected)
    for slot, (members, place) in enumerate(expected):
      weights, states = np.asarray(list(members.values())), r.x[list(members)]
      mean = part(weights) @ states
      if name == "item_sum":
        mean = states.sum(0) / len(states) ** 0.5
      if name == "item_projection":
        mean = sum(state @ np.asarray(net.kernel[level], np.float64) for level, state in enumerate(states))
      np.testing.assert_allclose(np.asarray(after.hidden)[row, slot], mean, rtol=2e-4, atol=2e-5)
      assert positions[row, slot] == place
      if method.kind != "pool":
        assert np.asarray(after.sizes)[row, slot] == len(members)
      else:
        np.testing.assert_allclose(np.asarray(after.sizes)[row, slot], weights.sum(), rtol=1e-4)


@pytest.mark.parametrize("width", [D, D - 1])
def test_a_learned_score_learns_and_changes_nothing(width):
  """It keeps the best K as they are; the network's weights get a gradient through the states that are kept."""
  seen = make_seen()
  net = learned.LearnedScore(ModelConfig(d_model=width), seen.layout, rngs=nnx.Rngs(0))
  seen = dataclasses.replace(seen, learned=net, tokens=seen.tokens.replace(hidden=seen.tokens.hidden[..., :width]))
  method = REDUCTIONS["learned_score"]
  ours, after = jax.jit(lambda: (method.score(seen), method.reduce(seen)))()
  assert net.inner.bias is not None
  kernel, bias = np.asarray(net.inner.kernel[...], np.float64), np.asarray(net.inner.bias[...])
  for row, r in rows_of(seen):
    if not r.n:
      continue
    features = r.x / np.sqrt((r.x**2).mean(1, keepdims=True) + 1e-6) @ kernel + bias
    both = np.concatenate([features[:, : width // 2], np.tile(features[:, width // 2 :].mean(0), (r.n, 1))], axis=1)
    logits = np.asarray(jax.nn.gelu(both)) @ np.asarray(net.outer.kernel[...])[:, 0]
    np.testing.assert_allclose(np.asarray(ours)[row, : r.n], logits, rtol=1e-4, atol=1e-5)
    kept = sorted(np.argsort(-logits, kind="stable")[:K])
    np.testing.assert_array_equal(np.asarray(after.hidden)[row, : len(kept)], seen.tokens.hidden[row][np.array(kept)])
  graph, params = nnx.split(net)

  def energy(params):
    reduced = method.reduce(dataclasses.replace(seen, learned=nnx.merge(graph, params)))
    return jnp.sum(jnp.where(reduced.mask[..., None], reduced.hidden, 0.0) ** 2)

  gradient = jax.jit(jax.grad(energy))(params)
  assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(gradient.inner))
  # What is kept scales with its score's sigmoid: where more of it makes the sum larger, higher scores do.
  opened = 1 / (1 + np.exp(-np.asarray(method.score(seen), np.float64)))
  lengths = (np.asarray(seen.tokens.hidden, np.float64) ** 2).sum(-1)
  expected = sum(
    2 * lengths[row, place] * opened[row, place] * (1 - opened[row, place])
    for row in range(len(ITEMS))
    for place in np.asarray(after.positions)[row][np.asarray(after.mask)[row]]
  )
  np.testing.assert_allclose(np.asarray(gradient.outer.bias[...]), [expected], rtol=1e-4)


def test_nothing_is_a_separator_where_there_are_none():
  """Collision codes come last in an item then: they are neither first nor protected."""
  seen = dataclasses.replace(make_seen(prune_separators=False), layout=ItemLayout(P, False))
  np.testing.assert_array_equal(scores.separators_first(seen), scores.recent(seen))
  kept = jax.jit(lambda: merge.drop(seen, scores.recent(seen), K))()
  np.testing.assert_array_equal(kept.positions[0], np.arange(max(ITEMS) * P - K, max(ITEMS) * P))
