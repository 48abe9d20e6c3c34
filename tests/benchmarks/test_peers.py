"""The benchmark beside other programs: equal local steps, and an observer that sees whole jobs."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedgan_mpi.config import Config
from fedgan_mpi.data import Batches, Manifest, read_shard, shard_name
from fedgan_mpi.federation.device import Device
from fedgan_mpi.federation.networks import build_networks
from fedgan_mpi.training.digits import write_digits

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
EVENTS = """
import os, time
def write(line):
    with open(os.environ["PEERS_EVENTS"], "a") as file:
        file.write(line + "\\n")
"""
BUSY = f"""{EVENTS}
import sys
for round in (1, 2):
    end = time.process_time() + 0.4
    while time.process_time() < end:
        pass
    write("bytes 30 50")
    if "server" in sys.argv:
        write(f"round {{round}} {{time.time()}}")
"""


@pytest.fixture
def import_peer(monkeypatch):
    monkeypatch.syspath_prepend(str(PEERS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(PEERS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_plain_step_is_a_step_of_fedgan(import_peer, monkeypatch, tmp_path):
    config = Config()
    config = replace(
        config,
        data=replace(config.data, devices=2),
        model=replace(config.model, width=4, nz=8),
        algorithm=replace(config.algorithm, name="fedgan", moments="reset"),
        run=replace(config.run, seed=3),
        training=replace(
            config.training, loss="nonsaturating", generator_lr=2e-4, discriminator_lr=2e-4
        ),
    )
    write_digits(config, tmp_path / "shards")
    job = {
        "shards": str(tmp_path / "shards"),
        "model": {"width": 4, "nz": 8},
        "seed": 3,
        "batch": config.training.batch_size,
        "lr": config.training.generator_lr,
        "silent_rounds": 1,
        "steps": 2,
    }
    monkeypatch.setenv("PEERS_JOB", json.dumps(job))
    plain_gan = import_peer("plain_gan")
    gan = plain_gan.Gan()
    start = {name: tensor.clone() for name, tensor in gan.state_dict().items()}
    # A peer's device has a stream for each round; the program's has one for the run.
    noise = torch.Generator().manual_seed(0)
    monkeypatch.setattr(plain_gan, "torch_stream", lambda *path: noise)
    plain_gan.train(gan, 2, 0)
    assert all(torch.equal(start[name], each) for name, each in gan.state_dict().items())
    plain_gan.train(gan, 2, 1)

    shape = Manifest.read(tmp_path / "shards").image_shape
    pair = build_networks(config, shape)
    assert all(torch.equal(start[f"G.{name}"], each) for name, each in pair.G.state_dict().items())
    shard = read_shard(tmp_path / "shards" / shard_name(2), image_shape=shape)
    device = Device(2, Batches(shard, batch_size=job["batch"], seed=3, device=2), pair, config)
    device.noise_stream.manual_seed(0)
    device.train_both(0, steps=2, update="simultaneous")
    for name, network in (("G", pair.G), ("D", pair.D)):
        for key, expected in network.state_dict().items():
            torch.testing.assert_close(gan.state_dict()[f"{name}.{key}"], expected)
    assert not torch.allclose(gan["G"].layers[0].weight, start["G.layers.0.weight"])


def test_the_observer_counts_all_processes_of_a_job(import_peer, tmp_path):
    processes = import_peer("processes")
    program = (
        f"import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', {BUSY!r}])\n"
    )
    program += f"sys.argv.append('server')\nexec({BUSY!r})\nchild.wait()"
    job = {"rounds": 2, "devices": 2}
    command = [sys.executable, "-c", program]
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    seen = processes.run(command, job, tmp_path / "job", timeout=60, memory=True)
    assert other.poll() is None  # no process of the job: neither counted nor ended
    other.kill()
    other.wait()
    cores = len(os.sched_getaffinity(0))
    assert seen.bytes_down == 60 and seen.bytes_up == 100
    assert seen.cpu_at(seen.end) == pytest.approx(1.6, abs=0.4)
    assert len(seen.ends) == 2 and seen.begin < seen.ends[0] < seen.ends[1] <= seen.end
    round_cpu = seen.cpu_at(seen.ends[1]) - seen.cpu_at(seen.ends[0])
    assert 0.3 < round_cpu < 0.4 * cores + 0.3
    assert seen.peak_mib > 5


def test_the_observer_refuses_a_job_that_loses_a_device(import_peer, tmp_path):
    processes = import_peer("processes")
    program = [sys.executable, "-c", f"import sys\nsys.argv.append('server')\nexec({BUSY!r})"]
    with pytest.raises(RuntimeError, match="ended with 0"):
        job = {"rounds": 2, "devices": 2}
        processes.run(program, job, tmp_path / "job", timeout=60, memory=False)


def test_ratios_are_those_of_the_same_block(import_peer):
    tables = import_peer("tables")

    def row(who, block, seconds):
        stage = {"seconds": seconds, "cpu_seconds": 2 * seconds}
        case = {"kind": "rounds", "pair": "16px", "devices": 4, "who": who, "block": block}
        return {**case, "silent": stage, "steps": None, "bytes_down": 4e6, "bytes_up": 6e6}

    # Each block of Flower takes 10 times as long, although the machine's speed varies.
    rounds = [row("ours", block, seconds) for block, seconds in enumerate((0.1, 0.4, 0.2))]
    rounds += [row("flower", block, seconds) for block, seconds in enumerate((1, 4, 2))]
    text = tables.round_table(rounds, "silent")
    assert "| 16, 4 | Flower | 2,000 (1,000 – 4,000) | 10 (10 – 10) |" in text
    assert "| 16, 4 | fedgan_mpi | 200 (100 – 400) |  |" in text
    assert "10.0 |" in text
    del rounds[3]  # a block without Flower gives no ratio
    assert "3,000 (2,000 – 4,000) | 10 (10 – 10)" in tables.round_table(rounds, "silent")


def test_seconds_to_a_score_are_those_of_the_first_point_below(import_peer):
    tables = import_peer("tables")
    ours = {"curve": [[5, 10.0, 18.0, 90.0], [10, 11.0, 20.0, 20.0], [15, 12.0, 22.0, 25.0]]}
    slow = {"curve": [[5, 20.0, 30.0, 31.0], [10, 26.0, 40.0, 29.0], [15, 30.0, 50.0, 10.0]]}
    never = {"curve": [[5, 20.0, 30.0, 31.0]]}
    case = {"kind": "scores", "data": "digits", "seed": 0}
    runs = (("ours", ours), ("flower", slow), ("fedml", never))
    text = tables.score_table([{**case, "who": who, **run} for who, run in runs])
    assert "| digits | Flower | 26 | 40 | 10 | 10 |" in text  # 1.5 times 20 is 30
    assert "| digits | FedML | reached by 0 of 1 |" in text
