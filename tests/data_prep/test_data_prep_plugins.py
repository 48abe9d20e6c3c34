"""Third-party data sets and partitions: from a file, or installed as a package.

The code is outsider_data.py, copied into a directory that the program does not know.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_prep_helpers import ROOT, SERIAL
from PIL import Image

from data_prep.__main__ import main
from data_prep.decode import Decoder
from data_prep.plugins import make_partition, make_source
from fedgan_mpi import plugins
from fedgan_mpi.cli.plugin_list import print_plugins
from fedgan_mpi.data import Manifest, read_shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.testing import jobs

FILE = Path(__file__).with_name("outsider_data.py")


@pytest.fixture(autouse=True)
def cwd(tmp_path, monkeypatch) -> Path:
    """A directory with parts.py, in a process that has permitted and imported nothing yet."""
    for name in ("_allowed", "_registered", "_loaded", "_files"):
        monkeypatch.setattr(plugins, name, type(getattr(plugins, name))())
    shutil.copy(FILE, tmp_path / "parts.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(dataset: str, *more: str) -> int:
    return main([dataset, "--out", "out", "--devices", "3", *SERIAL, *more])


def sizes() -> list[int]:
    return Manifest.read(Path("out")).images


# ---------------------------------------------------------------- they do their part


def test_a_source_and_a_partition_from_a_file(cwd):
    own = ["--partition", "parts.py:Halves", "--partition-option", "share=0.75"]
    assert prepare("parts.py:Shades", "--source-option=count=50", *own) == 0
    manifest = Manifest.read(cwd / "out")
    assert manifest.dataset == "Shades" and manifest.image_shape == (1, 8, 8)
    assert manifest.partition == {"name": "parts.py:Halves", "share": 0.75}
    assert manifest.images == [30, 5, 5] and manifest.heldout_images == 10
    assert manifest.class_names == [f"shade {n}" for n in range(4)]
    shard = read_shard(cwd / "out" / "device_0002.h5", image_shape=(1, 8, 8))
    assert np.array_equal(shard.images[:, 0, 0, 0], shard.indices)
    assert np.array_equal(shard.labels, shard.indices % 4)
    assert main(["inspect", "out"]) == 0


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["--partition=parts.py:Stripes", "--partition-option=step=2"], [11, 11, 10]),
        (["--partition=parts.py:halves_of_halves"], [8, 12, 12]),
        (["--partition=parts.py:Halves"], [16, 8, 8]),
    ],
)
def test_partitions_are_classes_or_functions(own, expected):
    assert prepare("parts.py:Shades", *own) == 0
    assert sizes() == expected


def test_a_function_makes_a_source():
    options = ["--source-option", "double=true", "--source-option", "title=50"]
    assert prepare("parts.py:shades", *options) == 0
    assert Manifest.read(Path("out")).dataset == "shades of 50" and sum(sizes()) == 64


def test_a_built_in_source_takes_options_in_the_same_way():
    assert prepare("digits", "--source-option", "size=12") == 0
    assert Manifest.read(Path("out")).image_shape == (1, 12, 12)
    assert make_partition("dirichlet", {}, {"alpha": "2"}).alpha == 2.0


def test_a_flag_of_a_built_in_partition_serves_an_own_one_with_that_option(capsys):
    with pytest.raises(UserError, match=r"unknown key --alpha = 0.5; parts.py:Stripes takes step"):
        make_partition("parts.py:Stripes", {"alpha": 0.5}, {})
    assert make_partition("parts.py:Stripes", {"step": 3}, {}).step == 3


def test_images_are_decoded_in_processes_too(cwd):
    (cwd / "texts").mkdir()
    for n in range(30):
        (cwd / "texts" / f"{n:02d}").write_text(str(n))
    arguments = ["--source", "texts", "--size", "8", "--features=none", "--processes=2"]
    assert main(["parts.py:Files", "--out", "out", "--devices", "2", *arguments]) == 0
    shard = read_shard(cwd / "out" / "device_0001.h5", image_shape=(3, 8, 8))
    assert np.array_equal(shard.images[:, 1, 4, 4], shard.indices)


def test_a_decoder_travels_to_a_process_that_has_not_imported_the_file(cwd):
    code = (
        "import pickle, sys; decoder = pickle.load(sys.stdin.buffer); import numpy as np; "
        "print(decoder(np.array([7])).images.max(), type(decoder.source).__name__)"
    )
    import pickle

    source = make_source("parts.py:Shades", None, {})
    decoder = Decoder(source=source, size=8, image_shape=(1, 8, 8), plugin="parts.py:Shades")
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(decoder), capture_output=True,
        env={**jobs.ENVIRONMENT, "PYTHONPATH": str(ROOT)}, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [b"7", b"Shades"]


def test_an_installed_package_has_short_names(cwd, monkeypatch, capsys):
    site = cwd / "site"
    information = site / "outsider_data-1.2.dist-info"
    information.mkdir(parents=True)
    shutil.copy(FILE, site / "outsider_data.py")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.2\n")
    (information / "entry_points.txt").write_text(
        "[data_prep.sources]\nown-shades = outsider_data:Shades\n"
        "[data_prep.partitions]\nown-halves = outsider_data:Halves\n"
    )
    monkeypatch.syspath_prepend(str(site))
    print_plugins()
    listed = capsys.readouterr().out
    assert "sources  (DATASET)" in listed and "partitions  (--partition)" in listed
    assert "own-shades       outsider 1.2     Gray images, each of one shade." in listed
    assert "own-halves" in listed and "Numbers" not in listed
    assert main(["--help"]) == 0
    assert "own-shades" in capsys.readouterr().out
    assert not (site / "imported").exists()  # listing runs nothing
    assert prepare("own-shades", "--partition=own-halves", "--partition-option=share=0.75") == 0
    assert sizes() == [24, 4, 4]
    assert Manifest.read(Path("out")).partition == {"name": "own-halves", "share": 0.75}
    assert main(["own-shaeds", "--out", "x"]) == 2
    assert "did you mean 'own-shades'?" in capsys.readouterr().err
    sys.modules.pop("outsider_data")


def test_descriptions_are_read_without_running_anything(cwd, monkeypatch, capsys):
    assert main(["parts.py:Shades", "--help"]) == 0
    assert "Gray images, each of one shade." in capsys.readouterr().out
    assert not (cwd / "imported").exists()
    package = cwd / "site" / "outsiders"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit")
    shutil.copy(FILE, package / "data.py")
    monkeypatch.syspath_prepend(str(cwd / "site"))
    plugin = plugins.Plugin("sources", "x", "outsiders.data:Shades", "outsiders 1.0")
    assert plugins.describe(plugin) == "Gray images, each of one shade."
    assert not (package / "imported").exists()


def test_a_manifest_never_chooses_what_code_runs(cwd):
    assert prepare("parts.py:Shades", "--partition=parts.py:Halves") == 0
    (cwd / "imported").unlink()
    code = "from data_prep.__main__ import main; import sys; sys.exit(main(['inspect', 'out']))"
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, cwd=cwd,
        env={**jobs.ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert not (cwd / "imported").exists()


def test_the_example(cwd):
    y, x = np.mgrid[:160, :240]
    Image.fromarray(np.stack([x, y, x // 2], 2).astype(np.uint8)).save("map.png")
    example = str(ROOT / "examples" / "own_source.py")
    arguments = ["--source=map.png", "--source-option=tile=16", "--devices=5", *SERIAL]
    own = [f"--partition={example}:Strips", "--partition-option=along=row"]
    assert main([f"{example}:Tiles", "--out=out", *arguments, *own]) == 0
    manifest = Manifest.read(cwd / "out")
    assert manifest.dataset == "Tiles" and manifest.image_shape == (3, 16, 16)
    assert manifest.images == [24] * 5 and manifest.heldout_images == 30
    # Device 1 has the upper rows: green is the row of the picture.
    with (
        h5py.File(cwd / "out" / "device_0001.h5") as first,
        h5py.File(cwd / "out" / "device_0005.h5") as last,
    ):
        assert first["images"][:, 1].max() < 32 and last["images"][:, 1].min() >= 128


# ---------------------------------------------------------------- mistakes

MISTAKES = {
    "a file that ends": (["ends.py:X"], "importing ends.py raised SystemExit: usage"),
    "a file that is no Python": (["map.py:X"], "importing map.py raised SyntaxError"),
    "no such file": (["none.py:Shades"], "DATASET is 'none.py:Shades', but there is no file"),
    "no such module": (["nowhere_at_all:X"], "but there is no module nowhere_at_all"),
    "no such name": (["parts.py:Shaeds"], "parts.py has no Shaeds; did you mean Shades?"),
    "no such data set": (["minst"], "DATASET is 'minst', but must be one of mnist, fashion_mnist"),
    "a number": (["parts.py:number"], "DATASET is 'parts.py:number', but that must be a subclass"),
    "a partition": (["parts.py:Halves"], "must be a subclass of data_prep.sources.base.Source"),
    "half a source": (["parts.py:HalfASource"], "HalfASource does not define __init__"),
    "unknown option": (
        ["parts.py:Shades", "--source-option=cuont=3"],
        "unknown key --source-option cuont = '3'; did you mean count?",
    ),
    "option of a wrong type": (
        ["parts.py:Shades", "--source-option=count=many"],
        "--source-option count is 'many', but must be int",
    ),
    "missing option": (["parts.py:Wrong"], "--source-option what is missing, but parts.py:Wrong"),
    "no option": (["digits", "--source-option=3"], "must have the form KEY=VALUE"),
    "twice": (
        ["digits", "--source-option=size=8", "--source-option=size=9"],
        "size is given twice",
    ),
    "no such partition": (
        ["digits", "--partition=dirichelt"],
        "did you mean 'dirichlet'?",
    ),
    "a source as partition": (
        ["digits", "--partition=parts.py:Shades"],
        "must be a subclass of data_prep.partitions.base.Partition",
    ),
    "wrong option of a partition": (
        ["digits", "--partition=parts.py:Halves", "--partition-option=shaer=1"],
        "unknown key --partition-option shaer = '1'; did you mean share?",
    ),
    "wrong option of a built-in partition": (
        ["digits", "--partition=dirichlet", "--partition-option=alhpa=1"],
        "unknown key --partition-option alhpa = '1'; did you mean alpha?",
    ),
    "no source directory": (["parts.py:Files"], "parts.py:Files needs --source"),
    "no size": (
        ["parts.py:Files", "--source=.", "--devices=1"],
        "Files has images of different sizes; add --size",
    ),
}


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_sentence(cwd, capsys, arguments, sentence):
    (cwd / "ends.py").write_text("import sys; sys.exit('usage')")
    (cwd / "map.py").write_text("1 +")
    assert prepare(*arguments) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in error and not (cwd / "out").exists()


WRONG = {
    "float": "its images are float64 (40, 1, 8, 8), but must be uint8 (N, C, H, W)",
    "shape": "its images are uint8 (40, 8, 8), but must be uint8 (N, C, H, W)",
    "channels": "its images have 1 channels, but it says 3",
    "labels": "its labels are int64 (39,), but must be an integer array (40,)",
    "float labels": "its labels are float64 (40,), but must be an integer array",
    "many labels": "it has the label 4, but 4 class_names",
    "names": "its class_names are 'abcd', but must be a list of texts",
    "no labels": "it has 4 class_names, but no labels",
    "heldout": "its heldout has the index 40, but it has 40 images",
    "all": "all of its images are held out",
    "size": "its default_size is 'big', but must be a number of pixels",
    "name": "its name is '../up', but must be usable as the name of a file",
    "none": "it has no images",
}


@pytest.mark.parametrize(("what", "clause"), WRONG.items())
def test_a_source_that_contradicts_itself_is_refused(cwd, capsys, what, clause):
    assert prepare("parts.py:Wrong", f"--source-option=what={what}") == 1
    assert capsys.readouterr().err.startswith(f"DATASET is 'parts.py:Wrong', but {clause}")
    assert not (cwd / "out").exists()


ODD = {
    "none": "must give one array of indices for each of 3 devices, but gives a NoneType",
    "few": "must give one array of indices for each of 3 devices, but gives 2",
    "twice": "must assign each of 32 training images once, but assigns",
    "left out": "must assign each of 32 training images once, but assigns 29 images 29 times",
    "foreign": "assigns image 10000, which is not for training",
    "floats": "but gives float64",
    "texts": "but gives <U1 ()",
    "empty": "gives device 2 of 3 no images",
}


@pytest.mark.parametrize(("what", "clause"), ODD.items())
def test_a_partition_that_loses_images_is_refused(cwd, capsys, what, clause):
    own = ["--partition=parts.py:Odd", f"--partition-option=what={what}"]
    assert prepare("parts.py:Shades", *own) == 1
    error = capsys.readouterr().err
    assert error.startswith("partition parts.py:Odd ") and clause in error
    assert not (cwd / "out").exists()


@pytest.mark.parametrize(
    "where", ["constructor", "length", "image", "array", "mode", "exit", "exit at once"]
)
@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_error_in_the_middle_names_the_plug_in(cwd, capsys, where, processes):
    arguments = ["--features=none", "--processes", processes, f"--source-option=where={where}"]
    assert main(["parts.py:Sick", "--out", "out", *arguments]) == 1
    error = capsys.readouterr().err
    assert "DATASET 'parts.py:Sick'" in error and error.count("\n") == 1
    expected = {
        "array": "17: it is an array of int16, but is_deep is",
        "mode": "17: it is RGBA, but must be",
    }
    assert expected.get(where, "boom") in error
    if where not in expected:
        assert f"{cwd / 'parts.py'} line" in error
    assert not (cwd / "out").exists()


def test_an_error_of_one_image_counts_as_an_unreadable_one(cwd):
    assert prepare("parts.py:Sick", "--source-option=where=image", "--skip-bad=1") == 0
    (reason,) = json.loads((cwd / "out" / "shards.json").read_text())["skipped"]
    assert reason.startswith("17: ValueError: boom. This was raised in the code of DATASET")


@pytest.mark.parametrize(
    "own",
    [
        ["parts.py:Shades", "--partition=parts.py:Odd", "--partition-option=what=raises"],
        ["parts.py:Sick", "--source-option=where=", "--partition=attribute", "--attributes=x"],
    ],
)
def test_an_error_of_a_partition_names_the_code_that_raised(cwd, capsys, own):
    assert prepare(*own) == 1
    error = capsys.readouterr().err
    culprit = "DATASET 'parts.py:Sick'" if own[0].endswith("Sick") else "--partition 'parts.py:Odd'"
    assert f"This was raised in the code of {culprit}" in error and error.count("\n") == 1
    assert not (cwd / "out").exists()


def test_an_open_file_is_named_before_it_travels(cwd):
    import pickle

    source = make_source("parts.py:Sick", None, {"where": "open file"})
    decoder = Decoder(source=source, size=8, image_shape=(1, 8, 8), plugin="parts.py:Sick")
    with pytest.raises(UserError, match=r"'parts.py:Sick' cannot be sent to another process"):
        pickle.dumps(decoder)
