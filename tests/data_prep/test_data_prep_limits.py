"""An image that takes too long, too much memory, or its process with it, is named and left out."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import picture_files as files
import pytest
from PIL import Image

from data_prep.__main__ import main
from data_prep.decode import Decoder, decode_in_processes, decode_serially
from data_prep.limits import Limits, TooSlow, limit_time
from data_prep.sources import ArraySource

BAD = 7
LIMITS = Limits(seconds=60, memory=300)
SHORT = Limits(seconds=1.5, memory=300)


class Hostile(ArraySource):
    """Images of one shade, of which number BAD does harm."""

    channels = 1
    class_names = []  # noqa: RUF012

    def __init__(self, harm) -> None:
        self.harm = harm
        self.images = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)

    def image(self, index):
        if index == BAD:
            self.harm()
        return super().image(index)


def loop():
    while True:
        pass


def sleep():
    time.sleep(60)


def swallow():
    """Loop as a library does that tries one decoder after the other."""
    with contextlib.suppress(Exception):
        loop()
    loop()


def loop_in_c():
    """Compute for minutes without returning to Python."""
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2**30)


def fill_memory():
    np.ones(2**28)


def fill_memory_slowly():
    held = []
    while True:
        held.append(bytearray(2**25))


HARMS = {
    "loop": (loop, "7: decoding takes longer than 1.5 s; --decode-seconds allows more"),
    "sleep": (sleep, "7: decoding takes longer than 1.5 s; --decode-seconds allows more"),
    "swallowed": (swallow, "7: decoding takes longer than 1.5 s"),
    "loop in C": (loop_in_c, "7: a decoding process was killed by it"),
    "array": (fill_memory, "7: decoding takes more than 300 MiB; --decode-memory allows more"),
    "list": (fill_memory_slowly, "7: decoding takes more than 300 MiB; --decode-memory"),
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), "7: a decoding process was killed"),
    "segfault": (lambda: ctypes.string_at(0), "7: a decoding process was killed"),
    "abort": (os.abort, "7: a decoding process was killed"),
    "exit": (lambda: os._exit(0), "7: a decoding process was killed"),
    "recursion": (lambda: [].append(recurse()), "7: RecursionError"),
    "exception": (lambda: {}["tile"], "7: KeyError: 'tile'"),
}


def recurse():
    return recurse() + 1


@pytest.mark.parametrize(("harm", "sentence"), HARMS.values(), ids=HARMS.keys())
def test_a_harmful_image_is_named_and_the_others_are_decoded(harm, sentence):
    limits = SHORT if harm in (loop, sleep, swallow, loop_in_c) else LIMITS
    decoder = Decoder(source=Hostile(harm), size=4, image_shape=(1, 4, 4), limits=limits)
    blocks = [np.arange(n, n + 5) for n in range(0, 40, 5)]
    decoded = list(decode_in_processes(2)(decoder, blocks))
    assert [block.indices.tolist() for block in decoded] == [
        [index for index in block.tolist() if index != BAD] for block in blocks
    ]
    for block in decoded:
        assert np.array_equal(block.images[:, 0, 0, 0], block.indices)
    (error,) = [error for block in decoded for error in block.errors]
    assert error.startswith(sentence)


def test_many_harmful_images_are_all_named():
    class Worse(Hostile):
        def image(self, index):
            if index % 3 == 0:
                os.abort()
            return super().image(index)

    decoder = Decoder(source=Worse(None), size=4, image_shape=(1, 4, 4), limits=LIMITS)
    blocks = [np.arange(n, n + 6) for n in range(8, 32, 6)]
    decoded = list(decode_in_processes(2)(decoder, blocks))
    named = [int(error.split(":")[0]) for block in decoded for error in block.errors]
    assert sorted(named) == [9, 12, 15, 18, 21, 24, 27, 30]


def test_time_is_limited_in_this_process_too():
    decoder = Decoder(source=Hostile(sleep), size=4, image_shape=(1, 4, 4), limits=SHORT)
    (block,) = decode_serially(decoder, [np.arange(10)])
    assert block.errors == [HARMS["sleep"][1]] and len(block.images) == 9
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_thread_decodes_without_a_limit():
    outcome = []

    def run():
        with limit_time(0.01, may_end_process=False) as begin:
            begin()
            time.sleep(0.05)
        outcome.append("done")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert outcome == ["done"]
    with pytest.raises(TooSlow), limit_time(0.01, may_end_process=False) as begin:
        begin()
        time.sleep(5)


def test_a_picture_larger_than_the_memory_is_named(tmp_path):
    """In a process of its own: the memory that other tests have freed would be used first."""
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(4):
        (folder / f"{n}.png").write_bytes(files.encode(Image.new("L", (8, 8), n), "PNG"))
    (folder / "bomb.png").write_bytes(files.blank_png(13_000))
    limits = ["--size=8", "--devices=1", "--heldout-share=0", "--processes=2", "--decode-memory=60"]
    command = ["imagefolder", f"--source={folder}", f"--out={tmp_path / 'out'}", *limits]
    done = subprocess.run(
        [sys.executable, "-m", "data_prep", *command], capture_output=True, text=True, timeout=100
    )
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and error.startswith("bomb.")
    assert "more than 60 MiB; --decode-memory" in error


@pytest.mark.parametrize(
    "option",
    ["--decode-seconds=0", "--decode-seconds=nan", "--decode-memory=0", "--decode-memory=x"],
)
def test_an_impossible_limit_is_refused(tmp_path, capsys, option):
    assert main(["digits", "--out", str(tmp_path / "out"), option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err
