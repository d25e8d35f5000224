"""The runner: it resumes, records what diverged, and lets no job spoil another's."""

import os
import sys
from pathlib import Path

import pytest
import run
from experiment import Job, Preset

JOBS = Preset(images=8, reference_lr=0.1, seeds=1, norms=("BN", "GN"), batches=(1, 2)).jobs("test")
LOG = "MICRO_BATCH_TEST_LOG"


def train(job: Job) -> list[dict]:
    """Logs its name; "GN" with 2 images diverges, and "BN" with 2 fails while a file says so."""
    log = Path(os.environ[LOG])
    with log.open("a") as file:
        file.write(f"{job.name}\n")
    if job.norm == "GN" and job.batch == 2:
        raise FloatingPointError("the loss is nan at step 3")
    if job.norm == "BN" and job.batch == 2 and log.with_suffix(".fail").exists():
        raise RuntimeError("no memory")
    return [{"score": job.batch}]


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    return tmp_path / "log"


def run_here(folder: Path) -> list[str]:
    """Run what is missing in this process; give the names."""
    waiting = run.missing(JOBS, folder)
    for job in waiting:
        run.run_job(train, job, folder)
    return [job.name for job in waiting]


def test_only_what_is_missing_is_run(tmp_path, log):
    names = [job.name for job in JOBS]
    assert run_here(tmp_path) == names
    assert run_here(tmp_path) == []
    (tmp_path / f"{names[1]}.json").unlink()
    # A torn file, and what a killed process leaves of one that it was writing.
    whole = (tmp_path / f"{names[2]}.json").read_text()
    (tmp_path / f"{names[2]}.json").write_text(whole[: len(whole) // 2])
    (tmp_path / f".{names[1]}.json.x.partial").write_text(whole[:10])
    assert run_here(tmp_path) == names[1:3]
    assert log.read_text().split() == [*names, *names[1:3]]
    assert (tmp_path / f"{names[2]}.json").read_text()[:50] == whole[:50]


def test_what_diverged_is_a_result(tmp_path, log):
    run_here(tmp_path)
    result = run.read_result(tmp_path / f"{JOBS[3].name}.json")
    assert result["job"] == {**vars(JOBS[3])} and result["rows"] == []
    assert result["diverged"] == "the loss is nan at step 3"
    assert run.read_result(tmp_path / f"{JOBS[0].name}.json")["diverged"] == ""


GRID = Preset(images=8, lr_grid=(0.1, 0.2), seeds=2, norms=("BN", "GN"), batches=(1, 2))


def test_the_rate_with_the_highest_mean_is_taken_and_one_that_diverged_is_not(tmp_path):
    """BN has the highest single score at 0.1 and the highest mean at 0.2; GN diverges at 0.2."""

    def train(job: Job) -> list[dict]:
        if job.norm == "GN" and job.reference_lr == 0.2 and job.seed:
            raise FloatingPointError
        high = job.reference_lr == 0.1 and job.seed == 0 and job.batch == 1
        return [{"score": 9.0 if high else 50 * job.reference_lr}]

    jobs = GRID.jobs("test")
    for job in jobs:
        run.run_job(train, job, tmp_path)
    assert run.best_lrs(jobs, tmp_path, "score") == {"BN": 0.2, "GN": 0.1}


def run_command(monkeypatch, folder: Path, train) -> list[str]:
    """Run two experiments, the first of which chooses rates; give the names of the jobs."""
    done = []

    def run_jobs(_, jobs, folder, processes):
        done.extend(job.name for job in jobs)
        return ["failed"] if train is None else [run.run_job(train, j, folder) for j in jobs][:0]

    monkeypatch.setattr(run, "run_jobs", run_jobs)
    monkeypatch.setattr(sys, "argv", ["test", "--output", str(folder)])
    last = Preset(images=8, seeds=1, norms=("BN", "GN"), batches=(1,))
    run.command("", train, {"first": GRID, "second": last}, score="score")
    return done


def test_a_grid_chooses_the_rates_of_the_experiments_behind_it(tmp_path, monkeypatch):
    best = {"BN": 0.2, "GN": 0.1}
    done = run_command(
        monkeypatch, tmp_path, lambda job: [{"score": -abs(job.reference_lr - best[job.norm])}]
    )
    assert done[16:] == ["second-bn-batch1-lr0.2-seed0", "second-gn-batch1-lr0.1-seed0"]


def test_nothing_is_trained_at_a_rate_that_was_not_chosen(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="failed"):
        run_command(monkeypatch, tmp_path, None)


def test_results_of_another_preset_are_not_taken(tmp_path, log):
    run_here(tmp_path)
    other = Preset(images=16, reference_lr=0.1, seeds=1, norms=("BN",), batches=(1,)).jobs("test")
    with pytest.raises(ValueError, match="Choose another --output"):
        run.missing(other, tmp_path)


@pytest.mark.slow
def test_processes_and_a_job_that_fails(tmp_path, log):
    folder, names = tmp_path / "results", [job.name for job in JOBS]
    log.with_suffix(".fail").touch()
    [failure] = run.run_jobs(train, JOBS, folder, processes=2)
    assert failure == f"{names[1]}: RuntimeError: no memory"
    assert {f.stem for f in folder.iterdir()} == {names[0], names[2], names[3]}
    log.with_suffix(".fail").unlink()
    assert run.run_jobs(train, JOBS, folder, processes=1) == []
    assert sorted(log.read_text().split()) == sorted([*names, names[1]])
