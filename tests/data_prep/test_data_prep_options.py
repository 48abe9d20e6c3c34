"""Options of data_prep that belong to other partitions."""

from __future__ import annotations

import pytest

from data_prep.command_line import parse, partition
from fedgan_mpi.errors import UserError

DIGITS = ["digits", "--out", "shards"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--alpha", "0.1"], "--alpha is for the partition dirichlet and quantity, not iid"),
        (["--partition=classes", "--blocks=3"], "--blocks is for the partition shards, not"),
        (["--partition=dirichlet", "--classes=2"], "--classes is for the partition classes, not"),
        (["--map", "nofile.csv"], "--map is for the partition by_file, not iid"),
        (["--min-images", "10"], "--min-images is for the partition dirichlet and"),
        (["--attributes", "class"], "--attributes is for the partition attribute, not iid"),
    ],
)
def test_an_option_of_another_partition_is_refused(options, sentence):
    with pytest.raises(UserError) as told:
        partition(parse([*DIGITS, *options]))
    assert sentence in str(told.value)


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("iid", [], {}),
        ("dirichlet", [], {"alpha": 0.5, "min_images": 10}),
        ("quantity", ["--alpha", "2"], {"alpha": 2.0, "min_images": 10}),
        ("classes", [], {"classes": 2}),
        ("shards", ["--blocks", "5"], {"blocks": 5}),
        ("attribute", ["--attributes=class"], {"attributes": ["class"]}),
    ],
)
def test_its_own_are_taken_or_have_their_defaults(name, options, found):
    cut = partition(parse([*DIGITS, f"--partition={name}", *options]))
    assert cut.name == name and {key: getattr(cut, key) for key in found} == found
