"""The examples run as their docstrings say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.testing.checks import check_algorithm, check_extractor, check_networks
from fedgan_mpi.testing.jobs import ENVIRONMENT
from fedgan_mpi.testing.runs import stats_lines

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_own_networks():
    check_networks(f"{EXAMPLES / 'own_networks.py'}:build", classes=3, options={"width": 8})


@pytest.mark.jobs
@pytest.mark.slow
def test_own_algorithm():
    check_algorithm(f"{EXAMPLES / 'own_algorithm.py'}:SharedGenerator", ranks=(1, 3))


def test_own_metric_and_extractor(tmp_path):
    check_extractor(f"{EXAMPLES / 'own_metric.py'}:brightness", options={"cells": 2})
    metrics = json.dumps(["frechet", f"{EXAMPLES / 'own_metric.py'}:EnergyDistance"])
    command = [sys.executable, "-m", "fedgan_mpi", "--run.name=a", "--training.rounds=2"]
    command += [f"--evaluation.metrics={metrics}", "--model.width=4", "--data.devices=2"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    energies = [
        line
        for line in stats_lines(tmp_path / "runs" / "a")
        if line.get("metric", "").startswith("energy_")
    ]
    # Real images are nearer to real ones than an untrained generator's images are.
    assert energies and all(line["value"] > 10 * line["floor"] > 0 for line in energies)


@pytest.mark.slow
def test_the_notebook_shows_curves_and_samples(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # commands of earlier tests have set it
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "digits.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # committed without results
    for cell in notebook.cells:
        cell.source = cell.source.replace("ROUNDS = 600", "ROUNDS = 6")
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 2
    assert len(stats_lines(tmp_path / "runs" / "notebook-1")) > 6


@pytest.mark.slow
def test_study(tmp_path):
    command = [sys.executable, EXAMPLES / "study.py", "8"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("learning rate ")
    assert len(list((tmp_path / "runs").iterdir())) == 3
