"""Checks of plug-ins, for their authors' tests: one call per plug-in.

Each check returns nothing, and raises AssertionError or UserError with a sentence that names what
is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from fedgan_mpi import plugins
from fedgan_mpi.config import EvaluationConfig, ModelConfig
from fedgan_mpi.evaluation.extractors import make_extractor
from fedgan_mpi.nn.registry import build
from fedgan_mpi.testing.jobs import MPIRUN, SMALL_NETWORKS, run_job
from fedgan_mpi.testing.runs import (
    copy_without_last_checkpoint,
    generator_bytes,
    losses,
    stats_without_seconds,
)

_ROUNDS = 4


def check_networks(
    networks: str | Callable[..., Any],
    *,
    image_shape: tuple[int, int, int] = (1, 16, 16),
    nz: int = 8,
    classes: int = 0,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Check a function that builds G and D.

    Outputs must have the right shapes and range, and every parameter must get a finite gradient.
    Two builds with one seed must be equal, and saved parameters must give the same images.
    classes: also check conditional networks with this number of classes.
    """
    name = _name("model.architecture", networks)
    model = ModelConfig(architecture=name, nz=nz, options=dict(options or {}))
    for number in (0, classes) if classes else (0,):
        G, D = build(model, image_shape, number, seed=1)
        again, _ = build(model, image_shape, number, seed=1)
        for key, one in G.state_dict().items():
            assert torch.equal(one, again.state_dict()[key]), (
                f"{name}: two builds with one seed differ in G's {key}"
            )
        z = torch.randn(4, nz)
        labels = [torch.eye(number)[torch.arange(4) % number]] if number else []
        D(G(z, *labels), *labels).sum().backward()
        for network, letter in ((G, "G"), (D, "D")):
            _check_gradients(name, network, letter)
        other, _ = build(model, image_shape, number, seed=2)
        other.load_state_dict(G.state_dict())
        with torch.no_grad():
            images, loaded = G.eval()(z, *labels), other.eval()(z, *labels)
        assert torch.equal(images, loaded), (
            f"{name}: G with the same parameters and buffers gives other images; keep all of its "
            "state in parameters and buffers"
        )


def check_extractor(
    extractor: str | Callable[..., Any],
    *,
    image_shape: tuple[int, int, int] = (1, 16, 16),
    options: Mapping[str, Any] | None = None,
) -> None:
    """Check a function that makes a feature extractor.

    For black, white and random images, it must return one row of finite numbers per image. A row
    must not depend on the other images of the batch. The images must not change.
    """
    name = _name("evaluation.extractor", extractor)
    config = EvaluationConfig(extractor=name, extractor_options=dict(options or {}))
    network = make_extractor(config, image_shape)
    stream = torch.Generator().manual_seed(0)
    random = torch.randint(0, 256, (6, *image_shape), generator=stream, dtype=torch.uint8)
    images = torch.cat([torch.zeros_like(random[:1]), torch.full_like(random[:1], 255), random])
    before = images.clone()
    with torch.no_grad():
        together = network.features(images)
        alone = torch.cat([network.features(image[None]) for image in images])
    assert torch.equal(images, before), f"{name}: it changes the images that it is given"
    assert together.isfinite().all(), f"{name}: its features are not finite"
    torch.testing.assert_close(
        together, alone, rtol=1e-4, atol=1e-5,
        msg=lambda text: f"{name}: an image's features depend on the other images. {text}",
    )  # fmt: skip
    assert make_extractor(config, image_shape).sha256 == network.sha256, (
        f"{name}: it is another network each time it is made; seed its parameters"
    )


def check_algorithm(
    algorithm: str | type[Any],
    *,
    oracle: str | None = None,
    ranks: Sequence[int] = (1, 2, 3, 4),
    flags: Sequence[str] = (),
    cwd: Path | None = None,
) -> None:
    """Check an algorithm by whole jobs of three devices on the embedded digits.

    Parameters, losses, logged numbers and bytes must be bitwise equal on each number of ranks, in a
    second run, and in a run that is resumed on fewer ranks. This is checked with all three devices
    in each round, and with two.

    oracle: An algorithm with its flags that must give bitwise equal results, such as "ren" or
        "fedgan --algorithm.epochs=2".
    flags: Further flags of every job.
    cwd: Directory for the run directories. None: a temporary one.

    Needs mpirun.
    """
    assert MPIRUN, "check_algorithm starts jobs, but mpirun is not installed"
    name = _name("algorithm.name", algorithm)
    with TemporaryDirectory() as temporary:
        jobs = _Jobs(name, cwd or Path(temporary), flags)
        two_of_three = ("--participation.policy=random", "--participation.count=2")
        for kind, participation, sizes in (
            ("all", (), ranks),
            ("partial", two_of_three, (ranks[0], ranks[-1])),
        ):
            first = jobs.run(f"{kind}-{sizes[0]}", sizes[0], *participation)
            for size in sizes[1:]:
                other = jobs.run(f"{kind}-{size}", size, *participation)
                jobs.compare(first, other, f"on {size} ranks instead of {sizes[0]}")
            again = jobs.run(f"{kind}-again", sizes[-1], *participation)
            jobs.compare(first, again, "when it runs again")
            resumed = jobs.resume(first, f"{kind}-resumed", max(1, sizes[-1] - 1))
            jobs.compare(first, resumed, "when it is resumed from a checkpoint")
            if oracle is not None:
                other_name, *other_flags = oracle.split()
                model = jobs.run(
                    f"{kind}-oracle", sizes[-1], *participation, *other_flags, name=other_name
                )
                jobs.compare(first, model, f"compared with {oracle}", logged=False)


class _Jobs:
    """Jobs of one algorithm in one directory."""

    def __init__(self, name: str, cwd: Path, flags: Sequence[str]) -> None:
        self.name, self.cwd, self.flags = name, cwd, flags

    def run(self, run: str, ranks: int, *flags: str, name: str | None = None) -> Path:
        """Train, and return the run directory."""
        self._start(
            ranks, f"--run.name={run}", f"--algorithm.name={name or self.name}",
            "--data.devices=3", f"--training.rounds={_ROUNDS}", "--checkpoint.every=2",
            "--link.average=gather", f"--evaluation.every={_ROUNDS}", *SMALL_NETWORKS,
            *(() if name else self.flags), *flags,
        )  # fmt: skip
        return self.cwd / "runs" / run

    def resume(self, run: Path, copy: str, ranks: int) -> Path:
        """Resume a copy of a run from the checkpoint before its last one."""
        resumed = self.cwd / "runs" / copy
        copy_without_last_checkpoint(run, resumed)
        self._start(ranks, f"--resume={resumed}", f"--algorithm.name={self.name}")
        return resumed

    def compare(self, run: Path, other: Path, when: str, *, logged: bool = True) -> None:
        """Assert that two runs are the same. logged: also all other numbers of stats.jsonl."""
        for what, read in (
            ("its losses are", losses),
            ("its generator is", generator_bytes),
            ("its line in stats.jsonl is", _rounds if logged else lambda run: None),
        ):
            assert read(run) == read(other), f"{self.name}: {what} another one {when}"

    def _start(self, ranks: int, *arguments: str) -> None:
        done = run_job(ranks, *arguments, cwd=self.cwd)
        assert done.returncode == 0, f"{self.name}: {done.stderr}"


def _rounds(run: Path) -> list[dict[str, Any]]:
    """Return the lines of rounds. Scores are sums over images, whose order depends on the ranks."""
    return [line for line in stats_without_seconds(run) if "metric" not in line]


def _check_gradients(name: str, network: nn.Module, letter: str) -> None:
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, f"{name}: {letter}'s {key} has no part in its output"
        assert parameter.grad.isfinite().all(), f"{name}: {letter}'s {key} has no finite gradient"


def _name(key: str, code: str | Callable[..., Any]) -> str:
    """Return the name or import string of a plug-in, and permit it.

    A file has its full path, because jobs run in other directories.
    """
    name = code if isinstance(code, str) else f"{inspect.getfile(code)}:{code.__qualname__}"
    file, colon, attribute = name.partition(":")
    if file.endswith(".py"):
        name = f"{Path(file).resolve()}{colon}{attribute}"
    plugins.allow([name])
    plugins.find(key, name)
    return name
