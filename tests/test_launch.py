"""The scripts of launch/: valid shell and YAML, what each would do word for word, and when training starts again."""

import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "launch"
DRY_RUNS = {
  "local": "bash launch/local.sh --config=configs/beauty.py:cpu --workdir=runs/b --raw_dir=/raw",
  "tpu_vm": "bash launch/tpu_vm.sh --name=tpu --zone=us-west4-a --project=p --nfs=10.0.0.2:/share --run=b --spot "
  "--delete --config=configs/beauty.py --raw_dir=/mnt/share/raw",
  "tpu_vm_bucket": "bash launch/tpu_vm.sh --name=tpu --zone=us-west4-a --bucket=gs://b/rastp/ --run=b "
  "--config=configs/beauty.py --raw_dir=gs://b/raw",
  "slurm": "bash launch/slurm.sbatch --config=configs/beauty.py --workdir=runs/b",
}


def test_scripts_are_clean():
  scripts = sorted([*ROOT.glob("launch/*.sh"), ROOT / "launch" / "slurm.sbatch"])
  shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
  done = subprocess.run([shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *scripts], capture_output=True)
  assert done.returncode == 0, done.stdout.decode()


def test_what_is_imported_is_compiled_once(tmp_path):
  """Also where the environment says that Python writes no bytecode."""
  (tmp_path / "launch").mkdir()
  shutil.copy(ROOT / "launch" / "setup.sh", tmp_path / "launch")
  (tmp_path / "requirements.txt").touch()
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
  installed = hashlib.sha256(b"").hexdigest()[:16]
  (tmp_path / ".venv" / f".installed-cpu-{installed}").touch()
  (tmp_path / "imported.py").touch()
  script = "source launch/setup.sh && .venv/bin/python -c 'import imported'"
  environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
  subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True)
  assert len(list(tmp_path.glob("__pycache__/imported.*.pyc"))) == 1


def test_slow_tests_are_left_to_ci():
  assert '-m "not slow"' in (ROOT / "launch" / "test.sh").read_text()
  assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec bash launch/test.sh --all"


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_runs_print_every_command(name, tmp_path):
  """Regenerate with: python tests/test_launch.py"""
  assert dry_run(name, tmp_path) == (GOLDEN / f"{name}.txt").read_text()


def dry_run(name: str, tmp: pathlib.Path) -> str:
  """What the script prints on a machine without accelerator, where any command but harmless ones would fail."""
  command = [*DRY_RUNS[name].split(), "--dry_run", "--config.train.length=2 epochs"]
  environment = {"PATH": "/usr/bin:/bin", "TMPDIR": "/tmp", "JAX_BUILD": "cpu", "HOME": str(tmp)}
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
  ("command", "missing"),
  [
    ("local.sh", "--config=FILE"),
    ("tpu_vm.sh", "--name=..."),
    ("tpu_vm.sh --name=n --zone=z --config=c --run=r", "either --bucket=gs://BUCKET/DIRECTORY or --nfs=IP:/SHARE"),
    ("tpu_vm.sh --name=n --zone=z --config=c --run=r --nfs=a:/b --bucket=gs://b", "either --bucket="),
    ("tpu_vm.sh --name=n --zone=z --config=c --run=r --bucket=s3://b", "either --bucket="),
  ],
)
def test_missing_options_are_named(command, missing):
  done = subprocess.run(["bash", *f"{ROOT}/launch/{command}".split()], capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.startswith("error: ") and missing in done.stderr


@pytest.mark.parametrize("setting", ["--config.data.max_items 30", "--noconfig.data.cite"])
@pytest.mark.parametrize(
  "command", ["launch/quickstart.sh", *(DRY_RUNS[name][len("bash ") :] for name in ("local", "tpu_vm"))]
)
def test_settings_that_would_not_reach_what_is_prepared_are_refused(command, setting):
  done = subprocess.run(["bash", *f"{ROOT}/{command} {setting}".split()], capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("error: write settings like --config.") and setting.split()[0] in done.stderr


def test_changes_that_would_not_reach_the_tpu_are_said(tmp_path):
  (tmp_path / "launch").mkdir()
  for name in ("settings.sh", "tpu_vm.sh"):
    script = shutil.copy(ROOT / "launch" / name, tmp_path / "launch")
  git = ["git", "-C", tmp_path, "-c", "user.name=test", "-c", "user.email=test@example.com"]
  for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=first"]):
    subprocess.run([*git, *command], check=True)
  told = []
  for _ in range(2):
    command = ["bash", script, *DRY_RUNS["tpu_vm"].split()[2:], "--dry_run"]
    told.append(subprocess.run(command, capture_output=True, text=True, check=True).stderr)
    (tmp_path / "own.py").write_text("")
  assert told == ["", "warning: changes that are not committed are not copied to the TPU (git status).\n"]


def test_jobset_is_complete():
  jobset = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"]  # one pod per host, all at once
  assert spec["backoffLimit"] == 0  # a lone pod must not come back without the others
  (rule,) = spec["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
  pod = spec["template"]["spec"]
  assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
  (container,) = pod["containers"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  chips = spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
  rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
  assert chips == int(rows) * int(columns)
  assert container["command"] == ["python", "-m", "rastp_jax.train"]
  assert any(argument.startswith("--workdir=gs://") for argument in container["args"])


def test_the_pods_job_follows_the_schema_of_kubernetes():
  jobset = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
  for replicated in jobset["spec"]["replicatedJobs"]:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": replicated["name"]}, **replicated["template"]}
    kubernetes_validate.validate(job, "1.30", strict=True)
    job["spec"]["template"]["spec"]["restartpolicy"] = "Never"  # misspelt
    with pytest.raises(kubernetes_validate.ValidationError):
      kubernetes_validate.validate(job, "1.30", strict=True)


def restart_until_done(*command, **environment):
  return subprocess.Popen(
    ["bash", ROOT / "launch" / "restart_until_done.sh", *command],
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize(("codes", "end"), [("75 1 0", 0), ("75 2 0", 2), ("75 75 75 0", 75)])
def test_training_starts_again_until_it_is_done_or_a_person_must_act(tmp_path, codes, end):
  """A command that ends with one exit code after the other; at most two restarts."""
  (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
  command = f"code=$(head -n 1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes; exit $code"
  process = restart_until_done("bash", "-c", command, MAX_RESTARTS="2")
  printed, _ = process.communicate(timeout=300)
  assert process.returncode == end
  expected = len(codes.split()) - 1 if end != 2 else 1
  assert printed.count("== Ended with exit code") == min(expected, 2)


def test_a_stop_is_passed_on_and_not_undone(tmp_path):
  command = f"trap 'echo saved; exit 75' TERM; touch {tmp_path}/up; while true; do sleep 0.05; done"
  process = restart_until_done("bash", "-c", command)
  while not (tmp_path / "up").exists():
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  printed, _ = process.communicate(timeout=300)
  assert process.returncode == 75
  assert printed == "saved\n"


def test_a_stop_in_the_first_moment_is_passed_on_too():
  command = "trap 'exit 75' TERM; kill -TERM $PPID; while true; do sleep 0.05; done"
  stopped = [restart_until_done("bash", "-c", command) for _ in range(40)]
  try:
    assert [process.wait(300) for process in stopped] == [75] * 40
  finally:
    for process in stopped:
      process.kill()
      process.communicate()


if __name__ == "__main__":
  GOLDEN.mkdir(exist_ok=True)
  for name in DRY_RUNS:
    (GOLDEN / f"{name}.txt").write_text(dry_run(name, pathlib.Path("/tmp")))
