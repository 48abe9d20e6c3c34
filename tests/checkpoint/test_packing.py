"""States as bytes: packing, overwriting, unpacking and refusing."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from fedgan_mpi.checkpoint.packing import PackedState, restore, unpack


def state(drawn: int = 3, factor: float = 1.0) -> dict:
    both = torch.arange(6.0) * factor  # both moments are halves of one vector
    return {
        "drawn": drawn,
        "stream": torch.arange(7, dtype=torch.uint8),
        "moments": [{"steps": 2, "first": both[:3], "second": both[3:]}],
        "own": [],
        "counts": [torch.tensor(5), torch.zeros(0)],
    }


def test_a_state_is_restored_and_its_bytes_are_overwritten_in_place(tmp_path):
    packed = PackedState(state())
    buffer = packed.content
    packed.fill(state(drawn=4, factor=2.0))
    assert packed.content is buffer
    restored = restore(unpack(packed.content), state())
    assert restored["drawn"] == 4 and restored["own"] == []
    assert restored["moments"][0]["steps"] == 2
    assert restored["moments"][0]["second"].tolist() == [6.0, 8.0, 10.0]
    assert restored["counts"][0].item() == 5 and len(restored["counts"][1]) == 0
    path = tmp_path / "state.safetensors"
    path.write_bytes(packed.content)
    with safe_open(path, "pt") as file:  # other programs can read it
        assert file.get_tensor("moments.0.first").tolist() == [0.0, 2.0, 4.0]


def test_a_packed_state_is_a_copy():
    original = state()
    packed = PackedState(original)
    original["moments"][0]["first"].fill_(9.0)
    assert restore(unpack(packed.content), state())["moments"][0]["first"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "other",
    [
        {**state(), "more": 1},
        {key: value for key, value in state().items() if key != "drawn"},
        {**state(), "stream": torch.arange(6, dtype=torch.uint8)},
        {**state(), "own": [torch.ones(1)]},
        state(drawn=-1),
        state(drawn=2**53),
    ],
    ids=["more", "fewer", "shorter", "another_list", "negative", "too_large"],
)
def test_a_state_of_another_structure_is_refused(other):
    with pytest.raises(ValueError):
        restore(unpack(PackedState(other).content), state())
