"""Plain words: turns of phrase that a technical reader stumbles over. Single words are codespell's (docs/words.txt)."""

import bisect
import itertools
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Plural nouns that are counted "a level" or "an item", and the singular ones that they are counted by.
COUNTED = (
  "batches|beams|bytes|centres|characters|chips|codes|columns|copies|cores|devices|directories|entries|epochs|examples|"
  "features|files|floats|FLOPs?|G?B|heads|hits|indices|interactions|items|levels|lines|M?FLOPs?|milliseconds|numbers|"
  "operations|parameters|pieces|places|points|positions|processes|products|programs|rows|runs|samples|seconds|seeds|"
  "shards|states|steps|texts|threads|times|tokens|trees|updates|users|values|vectors|widths|width|words"
)
BY = (
  "batch|beam|block|bucket|category|chip|code|core|count|device|epoch|field|figure|file|group|head|history|host|item|"
  "layer|length|level|line|machine|message|method|metric|minute|model|node|page|parameter|pod|position|prefix|process|"
  "query|row|run|sample|second|seed|session|shard|slice|stage|step|table|token|user|value|vector"
)
CLAUSE = r"(?! (?:has|had|may|can|must|will|would|was|is|does|did|took|saw|met|held|gave|\w{2,}s|\w+ed)\b)"
NOT_COUNTED = "is|was|with|of|in|to|as|for|at|like|from|has"
PATTERNS = {
  '"is not a", never "is no"': r"(?<!here )\b(?:is|are|was|were|be) no (?!longer|more|other|\w+er\b)",
  '"per level", never "codes a level"': rf"\b(?:{COUNTED}) an? (?:{BY})\b{CLAUSE}",
  '"per level", never "one code a level"': rf"\bone (?:(?!(?:{NOT_COUNTED})\b)\w+ ){{0,2}}an? (?:{BY})\b{CLAUSE}",
  '"must", never "has to"': r"(?<!would )\b(?:has|have) to\b",
  '"always" or "until it is stopped", never "for ever"': r"\b(?:for ever|ever so)\b",
  'a number or "this many", never "so many"': r"\bso many\b(?! \w+ that)",
  '"for that long", never "so long"': r"\bso long\b(?! as| that)",
  '"your own codes", never "codes of one\'s own"': r"\bone's own\b",
  '"positions", "indices" or "paths", never "places"': r"\b(?:kept|of|these|their|the|which|item|real) places\b",
}


def files() -> list[pathlib.Path]:
  """Every .py, .md and .sh file that belongs to the project, but this one."""
  listed = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.md", "*.sh"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  paths = [ROOT / name for name in listed.stdout.splitlines()]
  return [path for path in paths if path.is_file() and path != pathlib.Path(__file__).resolve()]


def found(text: str) -> list[str]:
  """Line, phrase and rule of everything that PATTERNS find, also where a phrase is split over lines or strings."""
  words = list(re.finditer(r"[^\s#\"*]+", text))
  joined = " ".join(word[0] for word in words)
  starts = list(itertools.accumulate((len(word[0]) + 1 for word in words), initial=0))
  hits = []
  for rule, pattern in PATTERNS.items():
    for match in re.finditer(pattern, joined):
      word = words[bisect.bisect_right(starts, match.start()) - 1]
      hits.append(f"{text.count(chr(10), 0, word.start()) + 1}: {match[0]!r}: say {rule}")
  return hits


@pytest.mark.parametrize(
  "text",
  [
    "this file is no licence",
    "codes a level",
    "one object a line",
    "it has to fit",
    "waits for\n  # ever",
    "at most so many rows",
    '"samples a "\n"step"',
  ],
)
def test_a_turn_of_phrase_is_found(text):
  assert found(text)


@pytest.mark.parametrize(
  "text",
  [
    "there is no checkpoint",
    "it is no longer there",
    "codes per level",
    "of items a user has chosen",
    "so many rows that none is left",
  ],
)
def test_good_english_passes(text):
  assert not found(text)


def test_every_file_is_in_plain_words():
  hits = [f"{path.relative_to(ROOT)}:{hit}" for path in files() for hit in found(path.read_text())]
  assert not hits, "\n" + "\n".join(hits)
