"""`evaluate RUN`: scores of the generators that a run has left, on any number of ranks.

Every rank reads a part of the shards and draws a part of the images. Lines go to evaluation.jsonl
in the run directory, a generator at a time; what stands there already is not measured again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedgan_mpi.checkpoint.format import (
    SERVER,
    checkpoints_of,
    read_content,
    read_generator_parameters,
    read_manifest,
)
from fedgan_mpi.cli.commands import Evaluate
from fedgan_mpi.cli.parser import read_config
from fedgan_mpi.comm.link import AgreedError, Link
from fedgan_mpi.config import Config
from fedgan_mpi.data import Manifest, Shard
from fedgan_mpi.data.loading import read_heldout, read_shards, scored_samples
from fedgan_mpi.errors import UserError
from fedgan_mpi.evaluation.features import Extractor
from fedgan_mpi.evaluation.scorer import RealImages, Scorer, generate, read_extractors
from fedgan_mpi.federation.networks import NetworkPair, build_networks
from fedgan_mpi.files import read_whole, refuse_links, sha256_of, write_complete, writing
from fedgan_mpi.hardware.placement import choose_torch_device, set_threads
from fedgan_mpi.random_streams import Purpose
from fedgan_mpi.run.generator_file import BEST, FINAL
from fedgan_mpi.training.preflight import check_same_shards

EVALUATION = "evaluation.jsonl"


def evaluate(link: Link, command: Evaluate) -> None:
    """Collective. Score what is not scored yet, and print all scores asked for."""
    asked = {
        "samples": command.samples,
        "metrics": command.metrics,
        "inception_weights": command.inception_weights,
    }
    opened = open_run(link, command.run, command.shards, asked)
    config, pair, seed = opened.config, opened.pair, opened.config.run.seed
    samples = scored_samples(config, opened.heldout)
    settings = {
        "samples": samples,
        "seed": seed,
        "metrics": list(config.evaluation.metrics),
        "extractors": [extractor.metric("frechet") for extractor in opened.extractors],
    }
    targets = link.from_server(lambda: _targets(command.run))
    known = link.from_server(lambda: _read_lines(command.run))
    scorer: Scorer | None = None
    for name in targets:
        sha256 = link.from_server(partial(_hash, command.run / name))
        key = {"generator": name, "sha256": sha256, **settings}
        if not any(line["of"] == key for line in known):
            scorer = scorer or Scorer(
                link,
                opened.extractors,
                opened.real,
                metrics=config.evaluation.metrics,
                samples=samples,
                seed=seed,
            )
            shown = read_generator(link, pair, command.run / name)
            images = partial(generate, pair, shown, seed=seed, purpose=Purpose.SCORE)
            values = scorer.measure(scorer.see(images, rank=link.rank, size=link.size))
            round = link.from_server(partial(_round_of, command.run / name))
            known += [{**line, "of": key} for line in scorer.lines(round, values)]
            link.from_server(partial(_write_lines, command.run, known))
        if link.is_server:
            _print([line for line in known if line["of"] == key])
    link.barrier()


@dataclass(kw_only=True)
class OpenRun:
    """A run as a rank sees it afterwards: any number of ranks share its devices' shards."""

    config: Config
    pair: NetworkPair
    extractors: list[Extractor]
    real: RealImages
    heldout: Shard


def open_run(
    link: Link, run: Path, shards: Path | None, evaluation: Mapping[str, Any] = MappingProxyType({})
) -> OpenRun:
    """Collective. shards: where they are now; evaluation: settings other than the run's.

    Raises AgreedError where the run, its shards or what scores need is missing or changed.
    """
    config = link.from_server(lambda: _config(run, evaluation))
    directory = shards or Path(config.data.shards or run / "shards")
    manifest = link.from_server(lambda: _read_manifest(run, directory))
    parts, heldout = link.on_every_rank(lambda: _read_data(link, config, directory, manifest))
    torch_device = choose_torch_device(config, link)
    set_threads(config, link)
    pooled = [sum(counts) for counts in zip(*manifest.histograms, strict=True)]
    features = None if manifest.features is None else directory / manifest.features
    extractors = read_extractors(link, features, config.evaluation.inception_weights)
    if heldout is None or not extractors:
        missing = "held-out images" if extractors else "feature extractor"
        raise AgreedError(f"{directory} has no {missing}, so there is nothing to score with")
    return OpenRun(
        config=config,
        pair=build_networks(config, manifest.image_shape, torch_device, histogram=pooled),
        extractors=extractors,
        real=RealImages(
            shards=parts,
            images=manifest.images,
            heldout=heldout,
            heldout_everywhere=True,
            directory=directory,
            sha256=manifest.sha256,
        ),
        heldout=heldout,
    )


def _config(run: Path, evaluation: Mapping[str, Any]) -> Config:
    config = read_config(run / "config.toml")
    refuse_links(run)
    changes = {key: value for key, value in evaluation.items() if value is not None}
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **changes))


def _read_manifest(run: Path, directory: Path) -> Manifest:
    manifest = Manifest.read(directory)
    check_same_shards(run, manifest)
    return manifest


def _read_data(
    link: Link, config: Config, directory: Path, manifest: Manifest
) -> tuple[dict[int, Shard], Shard | None]:
    """This rank's part of the shards, and the held-out images."""
    mine = range(link.rank + 1, manifest.devices + 1, link.size)
    shards = read_shards(directory, manifest, mine, in_memory=False)
    return shards, read_heldout(config, directory, manifest)


def _targets(run: Path) -> list[str]:
    """Checkpoints in the order of rounds, then the exported generators."""
    found = [f"checkpoints/{path.name}" for path in checkpoints_of(run)]
    exported = [f"{name}.safetensors" for name in (FINAL, BEST)]
    found += [name for name in exported if (run / name).exists()]
    if not found:
        raise UserError(f"{run} has neither checkpoints nor a generator yet")
    return found


def _hash(target: Path) -> str:
    if target.is_dir():
        manifest = read_manifest(target)
        read_content(manifest, SERVER)  # is what the manifest says
        return str(manifest.files[SERVER]["sha256"])
    return sha256_of(target)


def _round_of(target: Path) -> int:
    if target.is_dir():
        return int(target.name.removeprefix("round_"))
    about = target.with_suffix(".json")
    try:
        return int(json.loads(about.read_text(encoding="utf-8"))["round"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{about} is missing or damaged") from None


def read_generator(link: Link, pair: NetworkPair, target: Path) -> Tensor:
    """Collective. G of a checkpoint or of a .safetensors file as it was shown, on every rank."""
    shown = torch.zeros_like(pair.flat.whole_generator)

    def read() -> None:
        if target.is_dir():
            shown.copy_(read_generator_parameters(target, len(shown)))
            return
        try:
            pair.G.load_state_dict(load_file(target))
        except (OSError, SafetensorError, RuntimeError):
            raise UserError(
                f"{target} is damaged, or not the generator that config.toml describes"
            ) from None
        shown.copy_(pair.flat.whole_generator)

    link.from_server(read)
    link.broadcast(shown, traffic="other")
    return shown


def _read_lines(run: Path) -> list[dict[str, Any]]:
    path = run / EVALUATION
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in read_whole(path).splitlines()]
        return [line for line in lines if line["of"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; delete it to score anew") from None


def _write_lines(run: Path, lines: list[dict[str, Any]]) -> None:
    path = run / EVALUATION
    with writing(path):
        write_complete(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _print(lines: list[dict[str, Any]]) -> None:
    of = lines[0]["of"]
    print(f"{of['generator']}, round {lines[0]['round']}, {of['samples']} images")
    for line in lines:
        print(f"  {line['metric']} {line['value']:.5g} (held-out real images {line['floor']:.5g})")
    print(end="", flush=True)
