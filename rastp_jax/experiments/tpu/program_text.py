"""What a compiled TPU program moves, read from its text: traffic with the chip's memory, collectives, host transfers.

The compiler's own "bytes accessed" counts every operand and result once, whether it lies in the chip's main memory
(HBM) or in the fast memory beside the arithmetic (VMEM), and without the padding of its tiles. The text tells where
each array lies and how it is tiled: `bf16[256,145,384]{2,1,0:T(8,128)(2,1)S(1)}` is in VMEM (S(1)).
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "c64": 8}
_ARRAY = re.compile(r"\b(pred|bf16|c64|[fsu]\d+)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%([\w.\-]+) = (.*)$")
# Instructions that give a name to memory that is there already, or only wait for another one.
_NO_TRAFFIC = frozenset(
  (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "opt-barrier",
    "partition-id",
    "replica-id",
    "copy-done",
    "slice-done",
    "async-done",
    "async-update",
    "all-reduce-done",
    "all-gather-done",
    "collective-permute-done",
    "while",
    "conditional",
    "call",
  )
)
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_HOST = re.compile(
  r"\b(?:infeed|outfeed|send|recv)\(|is_host_transfer=true|custom_call_target=\"MoveTo(?:Host|Device)\""
)
_OWN_CODE = "rastp_jax/"
# What is called from everywhere says nothing about what a product is for.
_GENERAL_FILES = ("runtime/products.py", "runtime/hashing.py")
_GENERAL_FUNCTIONS = ("Linear.__call__",)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation: what it is called, what it gives (as text), what it does, to what, and the rest."""

  name: str
  result: str
  operation: str
  operands: tuple[str, ...]
  rest: str


@dataclasses.dataclass(frozen=True)
class Traffic:
  """What one call of a program moves on one chip.

  Attributes:
    hbm_bytes: read from and written to main memory, tiles padded.
    by_source: the same by line of our source, largest first.
    collectives: by kind, their number and the bytes that each chip gives to them, without the padding of tiles.
    host_transfers: instructions that talk to the host.
    cycles: of its kernels, one after the other, as the compiler estimates them.
    without_estimate: kernels that it gives no estimate of, by what they are.
  """

  hbm_bytes: float
  by_source: Mapping[str, float]
  collectives: Mapping[str, Mapping[str, float]]
  host_transfers: int
  cycles: int
  without_estimate: Mapping[str, int]


def read_traffic(text: str) -> Traffic:
  """Adds up a compiled program's text (`jax.stages.Compiled.as_text`)."""
  program = _Program(text)
  cycles, without_estimate = 0, collections.Counter()
  by_source: dict[str, float] = collections.defaultdict(float)
  collectives: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"number": 0, "bytes": 0})
  for instruction, types, times in program.executed(program.entry):
    moved = times * program.moved(instruction, types)
    if moved:
      by_source[program.source_of(instruction)] += moved
    if found := re.search(r'"estimated_cycles":"(\d+)"', instruction.rest):
      cycles += times * int(found[1])
    elif instruction.operation == "custom-call" or "kind=kCustom" in instruction.rest:
      without_estimate[re.sub(r"[.\d]+$", "", instruction.name)] += times
    kind = instruction.operation.removesuffix("-start")
    if kind in _COLLECTIVES:
      collectives[kind]["number"] += times
      arrays = (array for name in instruction.operands for array in _arrays(types.get(name, "")))
      collectives[kind]["bytes"] += times * sum(array.values for array in arrays)
  return Traffic(
    hbm_bytes=sum(by_source.values()),
    by_source=dict(sorted(by_source.items(), key=lambda found: -found[1])),
    collectives={kind: dict(found) for kind, found in sorted(collectives.items())},
    host_transfers=len(_HOST.findall(text)),
    cycles=cycles,
    without_estimate=dict(without_estimate),
  )


class _Program:
  """A program's computations and its table of source lines."""

  def __init__(self, text: str):
    self.computations: dict[str, list[Instruction]] = {}
    self.entry = ""
    self._tables: dict[str, dict[int, str]] = collections.defaultdict(dict)
    table = current = None
    for line in text.splitlines():
      if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
        table = self._tables[line]
      elif started := _COMPUTATION.match(line):
        current, table = self.computations.setdefault(started[2], []), None
        self.entry = started[2] if started[1] else self.entry
      elif table is not None and (entry := re.match(r"(\d+) (.*)", line)):
        table[int(entry[1])] = entry[2]
      elif current is not None and (found := _INSTRUCTION.match(line)):
        current.append(_instruction(found[1], found[2]))

  def executed(self, computation: str, times: int = 1) -> Iterator[tuple[Instruction, Mapping[str, str], int]]:
    """Every instruction that runs, the types of its computation's values, and how often; of branches the largest."""
    types = {instruction.name: instruction.result for instruction in self.computations[computation]}
    for instruction in self.computations[computation]:
      called = [name for name in re.findall(r"%([\w.\-]+)", instruction.rest) if name in self.computations]
      if instruction.operation == "while":
        count = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
        for name in called:
          yield from self.executed(name, times * (int(count[1]) if count else 1))
      elif instruction.operation == "conditional":
        yield from max((list(self.executed(name, times)) for name in called), key=len)
      elif instruction.operation == "call":
        for name in called:
          yield from self.executed(name, times)
      yield instruction, types, times

  def moved(self, instruction: Instruction, types: Mapping[str, str]) -> float:
    """Bytes of main memory that an instruction reads and writes."""
    operation = instruction.operation
    if operation in _NO_TRAFFIC:
      return 0.0
    if operation in ("copy-start", "slice-start"):  # (to, from, …) and ((from), to, …): as much is read as is written
      arrays = list(_arrays(instruction.result))
      to = arrays[0] if operation == "copy-start" else arrays[1]
      source = arrays[1] if operation == "copy-start" else arrays[0]
      return (not to.on_chip) * to.size + (not source.on_chip) * to.size
    inner = self._fused(instruction)
    read = 0.0
    for number, name in enumerate(instruction.operands):
      whole = _size(types.get(name, ""))
      read += min(whole, self._part_read(inner, number, whole)) if whole else 0.0
    if operation.endswith("-start"):  # the results lie beside the operands in one tuple
      return 2 * read
    return read + self._written(instruction, inner, types)

  def _fused(self, instruction: Instruction) -> Sequence[Instruction]:
    called = re.search(r"calls=%([\w.\-]+)", instruction.rest) if instruction.operation == "fusion" else None
    return self.computations[called[1]] if called else ()

  def _part_read(self, inner: Sequence[Instruction], number: int, whole: float) -> float:
    """What a fusion reads of an operand: of one that is only looked up or cut, what comes out of that."""
    name = next((i.name for i in inner if i.operation == "parameter" and i.rest.startswith(f"{number})")), None)
    if name is None:
      return whole
    parts = 0.0
    for user in (i for i in inner if name in i.operands):
      if user.operation in ("gather", "dynamic-slice", "slice") and user.operands[0] == name:
        parts += _size(user.result, everywhere=True)
      elif user.operation != "dynamic-update-slice" or user.operands[0] != name:
        return whole
    return parts

  def _written(self, instruction: Instruction, inner: Sequence[Instruction], types: Mapping[str, str]) -> float:
    whole = _size(instruction.result)
    updates = [i for i in inner or [instruction] if i.operation == "dynamic-update-slice"]
    if len(updates) != 1:
      return whole
    inside = {i.name: i.result for i in inner} if inner else types
    return min(whole, _size(inside.get(updates[0].operands[1], ""), everywhere=True))

  def source_of(self, instruction: Instruction) -> str:
    """The innermost line of this package that tells what an instruction is for; "" where none is named."""
    frame = re.search(r"stack_frame_id=(\d+)", instruction.rest)
    return self._line(int(frame[1])) if frame else self._first_use(instruction.name)

  def _first_use(self, name: str, steps: int = 4) -> str:
    """Copies that the scheduler adds name no line: what their result is first used for does."""
    for user in self._users[name] if steps else ():
      frame = re.search(r"stack_frame_id=(\d+)", user.rest)
      if found := self._line(int(frame[1])) if frame else self._first_use(user.name, steps - 1):
        return found
    return ""

  @functools.cached_property
  def _users(self) -> Mapping[str, list[Instruction]]:
    users = collections.defaultdict(list)
    for instruction in itertools.chain.from_iterable(self.computations.values()):
      for name in instruction.operands:
        users[name].append(instruction)
    return users

  def _line(self, number: int) -> str:
    table, general = self._tables, ""
    while frame := table["StackFrames"].get(number):
      location = table["FileLocations"].get(_number(frame, "file_location_id"), "")
      file = table["FileNames"].get(_number(location, "file_name_id"), "").strip('"')
      function = table["FunctionNames"].get(_number(location, "function_name_id"), "").strip('"')
      short = file.rpartition(_OWN_CODE)[2]
      if _OWN_CODE in file:
        label = f"{short}:{_number(location, 'line')} {function}"
        if short not in _GENERAL_FILES and function not in _GENERAL_FUNCTIONS:
          return label
        general = general or label
      parent = _number(frame, "parent_frame_id")
      if parent == number:
        break
      number = parent
    return general


def _number(text: str, name: str) -> int:
  found = re.search(rf"\b{name}=(\d+)", text)
  return int(found[1]) if found else 0


def _instruction(name: str, text: str) -> Instruction:
  end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
  result, (operation, rest) = text[:end], text[end:].strip().split("(", 1)
  close = _closing("(" + rest) - 1
  return Instruction(name, result, operation, tuple(re.findall(r"%([\w.\-]+)", rest[:close])), rest)


def _closing(text: str) -> int:
  """Where the bracket closes that the text begins with."""
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return place
  return len(text)


@dataclasses.dataclass(frozen=True)
class _Array:
  size: int  # bytes, with the padding of its tiles
  values: int  # bytes, without it
  on_chip: bool


def _arrays(text: str) -> Iterator[_Array]:
  for kind, dimensions, order, layout in _ARRAY.findall(text):
    sizes = [int(size) for size in dimensions.split(",") if size]
    width, values = _BYTES.get(kind, 1), math.prod(sizes)
    sizes = [sizes[int(axis)] for axis in order.split(",")] if order else sizes[::-1]  # the fastest one first
    tile = re.match(r"T\(([\d,]+)\)", layout)
    for place, size in enumerate(reversed(tile[1].split(",")) if tile else ()):
      if place < len(sizes):
        sizes[place] = -(-sizes[place] // int(size)) * int(size)
    yield _Array(math.prod(sizes) * width, values * width, bool(re.search(r"S\([1-9]\)", layout)))


def _size(text: str, *, everywhere: bool = False) -> float:
  """Bytes of a type's arrays in main memory, or `everywhere`."""
  return sum(array.size for array in _arrays(text) if everywhere or not array.on_chip)
