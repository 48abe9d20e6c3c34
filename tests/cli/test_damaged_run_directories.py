"""A resume refuses damaged statistics, links, pipes, missing files and damaged shards."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from damaged_runs import Attack, refusal, refused_resume

STATS: dict[str, Callable[[str], str]] = {
    "no lines": lambda text: "",
    "missing round": lambda text: re.sub('{"round": 2, "part.*\n', "", text),
    "repeated round": lambda text: re.sub('({"round": 2, "part.*\n)', r"\1\1", text),
    "loss as text": lambda text: re.sub('"d_loss": [^,]*', '"d_loss": "1"', text),
    "metric that is null": lambda text: re.sub('"metric": [^,]*', '"metric": null', text),
    "line that is not JSON": lambda text: "{x}\n" + text,
    "line of zero bytes": lambda text: "\0" * 9 + "}\n" + text,
    "line without a round": lambda text: "{}\n" + text,
    "round as text": lambda text: text.replace('"round": 1,', '"round": "1",'),
    "deep line": lambda text: "[" * 100_000 + "{}\n" + text,
}


def test_damaged_statistics(run, outside, capsys):
    """stats.jsonl is a result of the run, so a resume needs a line for each completed round."""
    path = run / "stats.jsonl"
    content = path.read_text()
    for case, change in STATS.items():
        path.write_text(change(content))
        message = refused_resume(run, outside, capsys)
        assert f"{path} is damaged" in message or f"{path} lacks some of" in message, case


# ------------------------------------------------------------ links, pipes and missing files


def replace(name: str, kind: str) -> Callable[[Path, Path], None]:
    """Return a function that moves a path out of the run and puts something else in its place."""

    def act(run: Path, outside: Path) -> None:
        path = run / name
        target = outside / path.name
        if path.exists():
            shutil.move(path, target)
        if kind == "link":
            path.symlink_to(target)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path.name)
        elif kind == "directory":
            path.mkdir()
        elif kind == "endless":
            path.symlink_to("/dev/zero")

    return act


NEWEST = "checkpoints/round_000002"
REPLACEMENTS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    f"{name} is {kind}": (replace(name, kind), sentence)
    for name, kinds, sentence in [
        ("checkpoints", ("link", "loop", "missing"), "checkpoints is a link|not a run directory"),
        ("samples", ("link",), "samples is a link"),
        ("stats.jsonl", ("link",), "stats.jsonl is a link"),
        ("stats.jsonl", ("directory", "pipe"), "stats.jsonl cannot be read"),
        ("config.toml", ("link", "pipe", "missing", "directory"), "config.toml"),
        (NEWEST, ("link", "missing"), "has no checkpoint to resume from"),
        (f"{NEWEST}/server.safetensors",
         ("link", "pipe", "loop", "directory", "endless", "missing"),
         "server.safetensors cannot be read"),
        (f"{NEWEST}/checkpoint.json", ("link", "pipe", "endless", "missing"),
         "checkpoint.json is missing or damaged"),
        ("shards/device_0001.h5", ("pipe", "missing", "directory", "endless"), "device_0001.h5"),
        ("shards/shards.json", ("pipe", "missing", "directory", "loop"), "shards.json"),
    ]
    for kind in kinds
}  # fmt: skip


@pytest.mark.parametrize("case", REPLACEMENTS)
def test_links_pipes_and_missing_files(run, outside, capsys, case):
    act, sentence = REPLACEMENTS[case]
    stats = run / "stats.jsonl"
    act(run, outside)
    if not stats.exists():
        stats.write_text("")
    message = refused_resume(run, outside, capsys)
    assert any(part in message for part in sentence.split("|")), message


# ------------------------------------------------------------ shards


def edit(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return act


def convert_images(dtype: str) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        images = file["images"][:].astype(dtype)
        del file["images"]
        file["images"] = images

    return change


def cut(fraction: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


SHARDS: dict[str, Callable[[Path], object]] = {
    "cut early": cut(0.1),
    "cut late": cut(0.95),
    "empty": cut(0.0),
    "text": lambda path: path.write_text("images"),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Attack())),
    "no images": edit(lambda file: file.pop("images")),
    "images of floats": edit(convert_images("float32")),
    "images of int16": edit(convert_images("int16")),
    "other pixels": edit(lambda file: file["images"].__setitem__((0, 0, 0, 0), 77)),
    "link to another file": edit(
        lambda file: (
            file.pop("images"),
            file.__setitem__("images", h5py.ExternalLink("x.h5", "/i")),
        )
    ),
}


def test_damaged_shards(run, outside, capsys):
    path = run / "shards" / "device_0001.h5"
    content = path.read_bytes()
    for case, act in SHARDS.items():
        path.write_bytes(content)
        act(path)
        assert "device_0001.h5" in refused_resume(run, outside, capsys), case


SCORE = {"round": 2, "metric": "a", "value": 1.0, "floor": 1.0, "samples": 9, "of": {}}


@pytest.mark.parametrize(
    "line",
    [
        {**SCORE, "more": 1},
        {**SCORE, "round": -1},
        {key: SCORE[key] for key in SCORE if key != "of"},
        [],
        SCORE["metric"],
    ],
    ids=["unknown key", "negative round", "missing key", "list", "text"],
)
def test_a_damaged_line_of_earlier_scores(run, capsys, line):
    path = run / "evaluation.jsonl"
    path.write_text(json.dumps(SCORE) + "\n" + json.dumps(line) + "\n")
    before = path.read_bytes()
    assert f"{path} is damaged; delete it to score again (" in refusal(capsys, "evaluate", str(run))
    assert path.read_bytes() == before
