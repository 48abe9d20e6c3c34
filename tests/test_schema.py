"""A mistake in a JSON file of a run or of shards is one sentence, never a traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import DEVICES

from fedgan_mpi.checkpoint.format import read_manifest
from fedgan_mpi.config.io import read_provenance
from fedgan_mpi.data import Manifest
from fedgan_mpi.errors import UserError
from fedgan_mpi.report.device_data import read_device_data
from fedgan_mpi.report.watch import describe
from fedgan_mpi.run.generator_about import read_about
from fedgan_mpi.run.record import rewind_record
from fedgan_mpi.schema import SchemaError, check, parse_json
from fedgan_mpi.training.state import TrainState

HOSTILE: list[Any] = [
    None, True, False, -1, 0, 1.5, 2**63, 2**64, 10**400, 1e308, "", "x", "../../x", "/etc/passwd",
    "\0", "\ud800", "é" * 300, [], {}, [[]], [None], {"": {}}, {"name": 7}, [10**30], ["\n"],
]  # fmt: skip
"""Values that replace each value of a file in turn."""

SHARDS = {
    "format_version": 1, "dataset": "toy", "image_shape": [1, 16, 16], "class_names": ["a", "b"],
    "partition": {"name": "iid"}, "seed": 0, "devices": 2, "images": [3, 4],
    "histograms": [[1, 2], [4, 0]], "pixels_sha256": ["a", "b"], "sha256": "c",
    "heldout": "heldout.h5", "heldout_images": 2, "features": "features.safetensors",
    "heldout_sha256": "d", "features_sha256": "e", "features_accuracy": 0.5, "skipped": ["a: b"],
}  # fmt: skip
GENERATOR = {
    "architecture": "dcgan", "options": {}, "image_shape": [1, 16, 16], "size": 16, "channels": 1,
    "nz": 8, "width": 4, "class_shares": [0.5, 0.5], "class_names": ["a", "b"], "parameters": 9,
    "output": "images", "round": 3, "dataset": "toy", "shards_sha256": "a", "fedgan_mpi": "0.2.0",
    "scores": [{"round": 3, "metric": "m", "value": 1.0, "floor": 0.5, "samples": 9}],
}  # fmt: skip
SCORE = {"round": 2, "metric": "frechet", "value": 1.0, "floor": 0.5, "samples": 9}
PROGRESS = {
    "images_seen": 9, "scores": [SCORE], "best": {"round": 2, "value": 1.0}, "scores_since_best": 0,
    "ended_early": False, "update_norms": [1.0, 2.0],
}  # fmt: skip
CHECKPOINT = {
    "format": 2, "round": 2, "progress": PROGRESS, "configuration": {"model": {"nz": 8}},
    "shards_sha256": "a", "files": {"server.safetensors": {"bytes": 3, "sha256": "b"}},
    "lost": ["device_0001.safetensors"], "versions": {"torch": "2"},
}  # fmt: skip
ROUND = {
    "round": 1, "participants": [1, 2], "skipped": [2], "d_loss": 1.0, "g_loss": None,
    "seconds": 2.0, "seconds_downlink": 0.5, "seconds_local": 0.5, "seconds_uplink": 0.5,
    "seconds_server": 0.5, "bytes_down": 10, "bytes_up": 10, "wireless_seconds": 1.0, "own": 1.0,
    "seconds_of_device": [0.5, 0.0],
}  # fmt: skip


def read_checkpoint(path: Path) -> object:
    return TrainState.from_json(read_manifest(path.parent).progress, 2)


def read_statistics(path: Path) -> object:
    describe(path.parent, 3, finished=False)
    return rewind_record(path.parent, 1, 1) or True


FILES: dict[str, tuple[dict[str, Any], Callable[[Path], object]]] = {
    "shards.json": (SHARDS, lambda path: Manifest.read(path.parent)),
    "generator.json": (GENERATOR, read_about),
    "devices.json": (DEVICES, lambda path: read_device_data(path.parent)),
    "round_000002/checkpoint.json": (CHECKPOINT, read_checkpoint),
    "stats.jsonl": (ROUND, read_statistics),
}
OPEN = {"stats.jsonl"}
"""Files in which an algorithm may write numbers with other names."""


def changes(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield copies of a JSON value in which one part is hostile, missing or unknown."""
    for hostile in HOSTILE:
        yield f"{where} is {str(hostile)[:20]!r}", hostile
    if isinstance(value, dict):
        yield f"{where} has an unknown key", {**value, "unknown": "x"}
        for key, inner in value.items():
            yield f"{where} lacks {key}", {k: v for k, v in value.items() if k != key}
            for label, changed in changes(inner, f"{where}.{key}"):
                yield label, {**value, key: changed}
    elif isinstance(value, list):
        for index, inner in enumerate(value[:1]):
            for label, changed in changes(inner, f"{where}[{index}]"):
                yield label, [*value[:index], changed, *value[index + 1 :]]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_value_is_read_or_refused_in_one_sentence(tmp_path, name):
    table, read = FILES[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(table) + "\n")
    assert read(path) is not None
    count = refused = 0
    for label, changed in changes(table):
        path.write_text(json.dumps(changed) + "\n")
        count += 1
        try:
            read(path)
        except (UserError, SchemaError) as error:
            assert "\n" not in str(error) and len(str(error)) < 500, label
            refused += 1
        else:
            assert "has an unknown key" not in label or label.split()[0] in OPEN_TABLES, label
    assert count > 200 and refused > count / 2


OPEN_TABLES = {
    ".partition", ".options", ".configuration.model", ".configuration", ".files",
    ".files.server.safetensors", ".versions",
}  # fmt: skip
"""Tables with any keys. The code that uses the values checks them."""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"[1, 2]", b"7", b'"x"', b"{}", b"{", b"\xff\xfe", b"\0" * 9, b"NaN",
     b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b'{"round": NaN}', b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_another_content_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content + b"\n")
    if name == "stats.jsonl" and not content:
        return
    with pytest.raises(UserError) as refused:
        FILES[name][1](path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize("name", FILES)
def test_an_endless_file_is_refused(tmp_path, name):
    """A sparse file of a terabyte takes no space on the disk, and more memory than there is."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"has more than [\d,]+ bytes"):
        FILES[name][1](path)


SENTENCES = [
    ("dataset", "/etc/x", "dataset is '/etc/x', but must be a name"),
    ("dataset", "../x", "dataset is '../x', but must be a name"),
    ("dataset", "a\\b", "must be a name"),
    ("dataset", "a" * 300, "must be a name of 1 to 100 printable characters"),
    ("dataset", "a\0b", "must be a name"),
    ("dataset", "", "must be a name"),
    ("dataset", "..", "must be a name"),
    ("dataset", "a\nb", "must be a name"),
    ("heldout", "../heldout.h5", "heldout is '../heldout.h5', but must be the name of a file"),
    ("heldout", "/etc/passwd", "must be the name of a file beside shards.json"),
    ("features", "a/../../b", "features is 'a/../../b', but must be the name of a file"),
    ("features", "", "features is '', but must be the name of a file"),
    ("images", [3, "4"], "images[1] is '4', but must be an integer"),
    ("images", [3, 0], "images[1] is 0, but must be an integer of at least 1"),
    ("images", [3, True], "images[1] is True, but must be an integer"),
    ("images", [3, 10**30], "but must be an integer of at most 9007199254740992"),
    ("images", [3], "images has 1 entries for 2 devices"),
    ("histograms", [[1, 2], [4]], "a histogram has 1 classes, but class_names has 2"),
    ("histograms", [[1, 2], [1, 1]], "a histogram has 2 images, but its device 4"),
    ("image_shape", [1, 16], "image_shape is [1, 16], but must be a list of length 3"),
    ("image_shape", [1, 16, 10**9], "image_shape[2] is 1000000000, but must be an integer of at"),
    ("class_names", [1], "class_names[0] is 1, but must be text"),
    ("class_names", None, "class_names is None, but must be a list"),
    ("partition", [], "partition is [], but must be a table"),
    ("partition", {}, "partition has no text 'name'"),
    ("devices", 2.5, "devices is 2.5, but must be an integer"),
    ("features_accuracy", 7.0, "features_accuracy is 7.0, but must be a number of at most 1.0"),
    ("surprise", 1, "it has the unknown key 'surprise'"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), SENTENCES)
def test_a_refusal_names_key_value_and_what_would_be_right(tmp_path, key, value, sentence):
    path = tmp_path / "shards.json"
    path.write_text(json.dumps({**SHARDS, key: value}))
    with pytest.raises(UserError, match=re.escape(sentence)) as refused:
        Manifest.read(tmp_path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("dataset", ["../x", "/x", "a/b", "\0", "x" * 300, ""])
def test_a_data_set_with_the_name_of_a_path_is_not_written(tmp_path, dataset):
    manifest = check({**SHARDS, "dataset": dataset}, Manifest)
    with pytest.raises(UserError, match=r"dataset is .* but must be a name"):
        manifest.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "provenance = 1", "[provenance]\nearlier = 1", '[provenance]\nearlier = ["x"]', "[a",
     "[provenance]\nshards_sha256 = 7"],
)  # fmt: skip
def test_a_damaged_provenance_is_refused(tmp_path, text):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UserError, match=r"config.toml is (missing or )?damaged"):
        read_provenance(tmp_path)


def test_python_text_that_is_no_unicode_is_kept():
    """A class may be a folder whose name is not UTF-8; Python writes it as a lone surrogate."""
    assert check(parse_json('["\\udcff"]'), list[str]) == ["\udcff"]


@pytest.mark.parametrize("value", ["\ud800", "a/b", "x" * 65, "a\n", " "])
@pytest.mark.parametrize("key", ["sha256", "heldout_sha256", "features_sha256"])
def test_a_hash_that_is_no_hash_is_refused(tmp_path, key, value):
    """A run records it in its config.toml."""
    (tmp_path / "shards.json").write_text(json.dumps({**SHARDS, key: value}))
    with pytest.raises(UserError, match=f"{key} is .* but must be text"):
        Manifest.read(tmp_path)
