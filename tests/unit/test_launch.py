"""Jobs of a multirun through submitit: real processes here, sbatch's script for a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medseg.errors import ResourceError, UsageError
from medseg.launch import make_executor, split_launcher

pytest.importorskip("submitit")


def medseg(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medseg.cli", *words]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def test_every_job_runs_in_a_process_of_its_own_and_the_worst_code_counts(tmp_path: Path) -> None:
    launcher = ["--multirun", "hydra/launcher=local", "hydra.launcher.folder=jobs"]
    done = medseg("models", "pattern=unet_wide,unet_classic", *launcher, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 jobs sent to local" in done.stdout
    logs = " ".join(path.read_text() for path in tmp_path.glob("jobs/*.out"))
    assert "7,759,521" in logs
    assert "9,282,246" in logs
    failed = medseg("check", f"data={tmp_path}", "json=true,false", *launcher, cwd=tmp_path)
    assert failed.returncode == 3, failed.stdout + failed.stderr
    assert "ended with 3" in failed.stdout


def test_a_script_for_slurm_says_what_the_settings_say(tmp_path: Path) -> None:
    """A folder with an `srun` and an `sbatch` that keeps the script is all that submitit needs of SLURM here."""
    tools, kept = tmp_path / "bin", tmp_path / "script.sh"
    tools.mkdir()
    (tools / "srun").write_text("#!/bin/sh\nexit 0\n")
    (tools / "sbatch").write_text(f'#!/bin/sh\ncp "$1" {kept}\necho "sbatch: refused by the test" >&2\nexit 1\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    words = ["hydra/launcher=slurm", "hydra.launcher.mem_gb=8", "hydra.launcher.slurm_partition=gpu"]
    words += ["hydra.launcher.gpus_per_node=1", f"hydra.launcher.folder={tmp_path}/jobs"]
    path = f"{tools}:{os.environ['PATH']}"
    done = medseg("models", "pattern=a,b,c", "--multirun", *words, cwd=tmp_path, PATH=path)
    assert done.returncode == ResourceError.exit_code, done.stdout + done.stderr
    assert "refused by the test" in done.stderr
    script = kept.read_text()
    for line in ("--array=0-2%3", "--mem=8GB", "--partition=gpu", "--gpus-per-node=1", "--time=1440"):
        assert f"#SBATCH {line}" in script


def test_no_slurm_here_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ResourceError, match="no slurm here"):
        make_executor({"cluster": "slurm", "folder": str(tmp_path), "name": "x"})


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["hydra/launcher=slrm"], "slurm"),
        (["hydra.launcher.mem_gb=8"], "hydra/launcher=slurm"),
        (["hydra/launcher=slurm", "hydra.launcher.mem_gib=8"], "mem_gb"),
        (["hydra/launcher=slurm", "hydra.launcher.name=[a"], "cannot be read"),
    ],
)
def test_wrong_words_name_the_right_ones(words: list[str], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        split_launcher(words)


def test_a_launcher_without_multirun_is_refused(tmp_path: Path) -> None:
    done = medseg("models", "hydra/launcher=local", cwd=tmp_path)
    assert (done.returncode, "add --multirun" in done.stderr) == (2, True)
