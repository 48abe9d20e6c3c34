"""CIFAR's batches are read without Python's unpickler: plain values and uint8 arrays only."""

from __future__ import annotations

import ctypes
import pickle
import pickletools
import struct
import sys
import tracemalloc

import numpy as np
import originals
import pytest
from data_prep_helpers import Attack, error_of
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources.cifar import Cifar10
from data_prep.sources.pickled import read_pickle
from fedgan_mpi.testing.mutations import mutate

DATA = originals.noise(20, 3072)
BATCH = {
    "batch_label": "1 of 6",
    "labels": [n % 10 for n in range(20)],
    "data": DATA,
    "filenames": [f"{n}.png" for n in range(20)],
}


def equal(read: dict, batch: dict) -> bool:
    return read.keys() == batch.keys() and all(
        np.array_equal(read[key], batch[key]) and type(read[key]) is type(batch[key])
        for key in batch
    )


def test_a_pickle_of_python_2_is_read():
    assert equal(read_pickle(originals.python2_pickle(BATCH)), BATCH)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("fast", [False, True], ids=["memo", "optimized"])
def test_a_batch_that_python_3_saved_again_is_read(protocol, order, fast):
    batch = {**BATCH, "data": np.asarray(DATA, order=order)}
    content = pickle.dumps(batch, protocol=protocol)
    assert equal(read_pickle(pickletools.optimize(content) if fast else content), batch)
    # The modules had other names before numpy 2.
    if protocol < 4:  # later ones state the length of a name
        assert equal(read_pickle(content.replace(b"numpy._core.", b"numpy.core.")), batch)


def test_protocol_5_with_an_array_that_is_not_writable():
    array = np.frombuffer(DATA.tobytes(), np.uint8).reshape(DATA.shape)
    assert np.array_equal(read_pickle(pickle.dumps({"data": array}, 5))["data"], DATA)


@pytest.mark.parametrize("shape", [(0,), (0, 3072), (1,), (2, 3, 4)])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_other_shapes_are_read(shape, protocol):
    array = originals.noise(*shape)
    read = read_pickle(pickle.dumps(array, protocol))
    assert read.shape == shape and np.array_equal(read, array)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_whole_data_set_that_was_saved_again_with_bytes_as_keys(tmp_path, protocol):
    """`pickle.load(file, encoding="bytes")` gives such keys; many people save them again."""
    files, images = originals.cifar10_files()
    for name, content in files.items():
        if "html" not in name:
            batch = pickle.loads(content, encoding="bytes")
            files[name] = pickle.dumps(batch, protocol=protocol)
    originals.unpack(tmp_path, files)
    source = Cifar10(tmp_path)
    assert np.array_equal(source.images, images)
    assert source.class_names == list("abcdefghij")


# ------------------------------------------------------------ hostile pickles


class Reduce:
    """Pickles as a call."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __reduce__(self):
        return self.parts


RECONSTRUCT = np.zeros(1, np.uint8).__reduce__()[0]
ARRAY = (np.ndarray, (0,), b"b")
KEPT = {"an object": 1}
ADDRESS = struct.pack("P", id(KEPT))


def state(shape: object, dtype: object, raw: object) -> tuple:
    return (1, shape, dtype, False, raw)


class Text(str):
    """A text in the place of a name."""


HOSTILE: dict[str, object] = {
    "an array of objects": np.array([KEPT, None], dtype=object),
    "objects at chosen addresses": Reduce(
        RECONSTRUCT, ARRAY, state((1,), np.dtype("O"), b"\x41" * 8)
    ),
    "an object that exists": Reduce(RECONSTRUCT, ARRAY, state((1,), np.dtype("O"), ADDRESS)),
    "a buffer of objects": Reduce(
        np._core.numeric._frombuffer, (ADDRESS, np.dtype("O"), (1,), "C")
    ),
    "a record with objects": np.array([(1, KEPT)], dtype=[("a", "u1"), ("b", "O")]),
    "a call of the system": Attack(),
    "eval": Reduce(eval, ("1",)),
    "a class": dict,
    "an import": Reduce(__import__, ("antigravity",)),
    "getattr": Reduce(getattr, (np, "load")),
    "numpy.load": Reduce(np.load, ("/etc/passwd",)),
    "numpy.memmap": Reduce(np.memmap, ("/etc/passwd",)),
    "numpy.ndarray": Reduce(np.ndarray, ((2**40,), np.dtype("u1"))),
    "numpy.ndarray of a buffer": Reduce(np.ndarray, ((8,), np.dtype("O"), ADDRESS)),
    "numpy.empty": Reduce(np.empty, ((2**36,),)),
    "more elements than bytes": Reduce(
        RECONSTRUCT, ARRAY, state((2**40,), np.dtype("u1"), b"\0" * 8)
    ),
    "fewer elements than bytes": Reduce(
        RECONSTRUCT, ARRAY, state((4,), np.dtype("u1"), b"\0" * 8)
    ),
    "a negative shape": Reduce(RECONSTRUCT, ARRAY, state((-8, -1), np.dtype("u1"), b"\0" * 8)),
    "a shape that overflows": Reduce(
        RECONSTRUCT, ARRAY, state((2**63, 2), np.dtype("u1"), b"\0" * 8)
    ),
    "a text as shape": Reduce(RECONSTRUCT, ARRAY, state("8", np.dtype("u1"), b"\0" * 8)),
    "no bytes": Reduce(RECONSTRUCT, ARRAY, state((1,), np.dtype("u1"), None)),
    "a list as bytes": Reduce(RECONSTRUCT, ARRAY, state((1,), np.dtype("u1"), [KEPT])),
    "another subtype": Reduce(RECONSTRUCT, (np.matrix, (0,), b"b"), state((1,), None, b"x")),
    "a state without parts": Reduce(RECONSTRUCT, ARRAY, (1,)),
    "int64": np.arange(3),
    "float64": np.zeros((20, 3072)),
    "bool": np.zeros(3, bool),
    "text in arrays": np.array(["a"]),
    "a scalar of numpy": np.uint8(7),
    "a date": np.array(["2020-01-01"], "M8[D]"),
    "a structure": np.zeros(2, dtype=[("a", "u1")]),
    "a set": {1, 2},
    "an exception": ValueError("x"),
    "codecs": Reduce(__import__("_codecs").encode, ("x", "rot13")),
    "codecs of bytes": Reduce(__import__("_codecs").encode, (b"x", "zip")),
    "a partial": __import__("functools").partial(print, 1),
    "a complex number": 1j,
}  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("case", HOSTILE)
def test_anything_but_plain_values_is_refused(tmp_path, monkeypatch, case, protocol):
    monkeypatch.chdir(tmp_path)
    try:
        content = pickle.dumps({"data": HOSTILE[case], "labels": [0]}, protocol=protocol)
    except (pickle.PicklingError, TypeError, ValueError):
        return  # this protocol cannot express it
    references = sys.getrefcount(KEPT)
    with pytest.raises(ValueError):
        read_pickle(content)
    assert sys.getrefcount(KEPT) == references
    assert list(tmp_path.iterdir()) == []
    assert "antigravity" not in sys.modules


BYTES: dict[str, bytes] = {
    "empty": b"",
    "only the protocol": b"\x80\x02",
    "no end": b"\x80\x02}",
    "two values": b"\x80\x02}}.",
    "text": b"hello",
    "instance": b"(iposix\nsystem\n.",
    "object": b"(cposix\nsystem\nS'touch pwned'\no.",
    "new object": b"\x80\x02cposix\nsystem\n)\x81.",
    "persistent": b"P7\n.",
    "persistent of binary": b"K\x07Q.",
    "extension": b"\x82\x01.",
    "stack global with numbers": b"\x80\x04K\x01K\x02\x93.",
    "build of a list": b"\x80\x02]}b.",
    "build of a dict": b"\x80\x02}}b.",
    "build of a name": b"\x80\x02cnumpy\nndarray\n}b.",
    "build of None": b"\x80\x02N}b.",
    "call of a list": b"\x80\x02])R.",
    "call of a number": b"\x80\x02K\x01)R.",
    "call of a name that is none": b"\x80\x02cnumpy\nndarray\n)R.",
    "encode without arguments": b"\x80\x02c_codecs\nencode\n)R.",
    "encode of a number": b"\x80\x02c_codecs\nencode\nK\x01K\x02\x86R.",
    "dtype of a list": b"\x80\x02cnumpy\ndtype\n]\x85R.",
    "array without content": b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)Rs.",
    "pop of nothing": b"\x80\x020.",
    "append to nothing": b"\x80\x02K\x01a.",
    "append to a text": b"\x80\x02U\x01xK\x01a.",
    "appends without a mark": b"\x80\x02]K\x01e.",
    "items of a list": b"\x80\x02]K\x01K\x02s.",
    "odd items": b"\x80\x02}(K\x01u.",
    "key that is a list": b"\x80\x02}]K\x01s.",
    "memo that does not exist": b"\x80\x02h\x07.",
    "memo of nothing": b"\x80\x02q\x07.",
    "memo with a huge index": b"\x80\x02}r\xff\xff\xff\xff.",
    "length beyond the end": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "bytearray beyond the end": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "text beyond the end": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
    "negative length": b"\x80\x02T\xff\xff\xff\xff.",
    "long beyond the end": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
    "buffer of another file": b"\x80\x05\x97.",
    "unknown protocol": b"\x80\xff}.",
    "marks": b"\x80\x02" + b"(" * 100_000 + b".",
    "digits": b"L" + b"9" * 10_000 + b"L\n.",
    "no text": b"\x80\x02X\x01\0\0\0\xff.",
}


HARMLESS = {"unknown protocol", "memo with a huge index", "frame beyond the end"}
"""Pickles that make other unpicklers reserve memory. This one reads an empty dict from them."""


@pytest.mark.parametrize("case", BYTES)
def test_damaged_pickles_take_no_memory(case):
    tracemalloc.start()
    try:
        if case in HARMLESS:
            assert read_pickle(BYTES[case]) == {}
        else:
            with pytest.raises(ValueError):
                read_pickle(BYTES[case])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 20e6


def test_a_text_that_is_encoded_again_and_again_is_refused():
    text = (
        b"\x80\x02X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x00X\x06\0\0\0latin1q\x01"
    )
    again = b"c_codecs\nencode\nh\x00h\x01\x86R"
    with pytest.raises(ValueError, match="more bytes than it has"):
        read_pickle(text + again * 100 + b".")


def test_a_deep_value_is_no_recursion():
    content = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    assert isinstance(read_pickle(content), list)


def test_a_value_that_holds_itself(tmp_path, capsys):
    names: list = ["a"]
    names.append(names)
    files = originals.cifar10_files()[0]
    files["cifar-10-batches-py/batches.meta"] = pickle.dumps({"label_names": names}, protocol=2)
    originals.unpack(tmp_path / "in", files)
    assert "batches.meta has no list of texts 'label_names'" in error_of(
        capsys, "cifar10", tmp_path / "in"
    )


@pytest.mark.parametrize(
    "batch",
    [
        {"data": [1], "labels": [0]},
        {"data": originals.noise(20, 3072), "labels": [True] * 20},
        {"data": originals.noise(20, 3072), "labels": [0.0] * 20},
        {"data": originals.noise(20, 3072), "labels": [2**70] * 20},
        {"data": originals.noise(20, 3072), "labels": np.zeros(20, np.uint8)},
        {"data": originals.noise(3072), "labels": [0]},
        {"data": originals.noise(20, 3072, 1), "labels": [0] * 20},
        {"data": None},
        {},
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_batch_with_other_values_is_refused(tmp_path, capsys, batch, protocol):
    files = originals.cifar10_files()[0]
    files["cifar-10-batches-py/data_batch_2"] = pickle.dumps(batch, protocol=protocol)
    originals.unpack(tmp_path / "in", files)
    assert "data_batch_2" in error_of(capsys, "cifar10", tmp_path / "in")


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)
SMALL = {**BATCH, "data": DATA[:2, :40], "labels": [1, 2], "filenames": ["a"]}
CONTENTS = [originals.python2_pickle(SMALL), *(pickle.dumps(SMALL, n) for n in range(6))]


@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(CONTENTS), MUTATIONS)
def test_a_mutated_pickle_is_read_or_refused(content, mutations):
    try:
        read_pickle(mutate(content, mutations))
    except ValueError:
        return


def test_the_tests_of_addresses_would_notice_a_dereference():
    """The bytes in the hostile arrays are the address of a living object."""
    pointer = ctypes.cast(struct.unpack("P", ADDRESS)[0], ctypes.py_object)
    assert pointer.value is KEPT
