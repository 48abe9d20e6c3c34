"""Every algorithm on ranks against a plain loop over devices in one process."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from oracle_runs import assert_server_equals, fix_layers, run_oracle
from rounds import UNEQUAL, assert_close, oracle_shares, trained
from toys import (
    NZ,
    conditional_networks,
    play,
    toy_algorithm,
    toy_config,
    toy_networks,
    toy_shards,
)

from fedgan_mpi.comm.link import Link

pytestmark = pytest.mark.mpi(min_size=3)

# ---------------------------------------------------------------- ren

REN_CASES = {
    "defaults": {},
    "sgd": {"training": {"optimizer": "sgd", "discriminator_lr": 0.05, "generator_lr": 0.05}},
    "saturating": {"training": {"loss": "saturating"}},
    "warm-up": {"training": {"warmup_rounds": 3}},
    "linear decay": {"training": {"warmup_rounds": 1, "lr_schedule": "linear", "rounds": 4}},
    "linear decay of sgd": {
        "training": {
            "optimizer": "sgd",
            "lr_schedule": "linear",
            "rounds": 4,
            "discriminator_lr": 0.05,
            "generator_lr": 0.05,
        }
    },
    "reset moments": {"algorithm": {"moments": "reset"}},
    "local statistics": {"algorithm": {"batchnorm": "local"}},
    "shares by batch": {"algorithm": {"shares": "batch"}},
    "uniform shares": {"algorithm": {"shares": "uniform"}},
    "three server steps": {"training": {"generator_steps": 3}},
    "round robin": {"participation": {"policy": "round_robin", "count": 2}},
    "random": {"participation": {"policy": "random", "count": 2}},
    "gather": {"link": {"average": "gather"}},
    "frozen": {"training": {"freeze_discriminator": 1}},
    "two frozen layers": {"training": {"freeze_discriminator": 2}},
}


@pytest.mark.parametrize("schedule", ["serial", "parallel"])
@pytest.mark.parametrize("changes", REN_CASES.values(), ids=REN_CASES.keys())
def test_ren_equals_its_oracle(comm, schedule, changes):
    """Five devices with unequal shards, hosted on all device ranks."""
    changes = {**changes, "algorithm": {**changes.get("algorithm", {}), "schedule": schedule}}
    config = toy_config(**changes)
    shards = toy_shards(UNEQUAL)
    link = Link(comm)
    algorithm = toy_algorithm(link, config, shards)
    G, D = fix_layers(config, toy_networks())
    rounds = 4
    play(algorithm, rounds)
    expected_g, expected_d, local = oracle.ren(
        G, D, shards, config, rounds, oracle_shares(config, UNEQUAL), NZ
    )
    assert_server_equals(algorithm, expected_g, expected_d)
    if config.algorithm.statistics_rule == "local":
        for device in algorithm.rank_state.devices:
            norm = local[device.index].norm
            assert_close(device.local.own[0], torch.cat([norm.running_mean, norm.running_var]))


# ---------------------------------------------------------------- the other algorithms

CASES = {
    "fedgan": {},
    "fedgan sgd": {"training": {"optimizer": "sgd", "discriminator_lr": 0.1, "generator_lr": 0.1}},
    "fedgan alternating": {"algorithm": {"local_update": "alternating"}},
    "fedgan local": {"algorithm": {"batchnorm": "local"}},
    "fedgan reset": {"algorithm": {"moments": "reset"}},
    "fedgan fl_gan": {
        "algorithm": {"preset": "fl_gan", "epochs": 2},
        "training": {"discriminator_steps": 1},
    },
    "fedgan round_robin": {"participation": {"policy": "round_robin", "count": 2}},
    "fedgan lsgan": {"training": {"loss": "lsgan"}},
    "fedgan conditional": {"model": {"conditional": True}},
    "fedgan wgan-gp": {"training": {"loss": "wgan-gp"}},
    "fedgan wgan-gp alternating": {
        "training": {"loss": "wgan-gp"},
        "algorithm": {"local_update": "alternating"},
    },
    "fedgan augmented": {"training": {"augment": ("flip", "color", "translation", "cutout")}},
    "fedgan augmented alternating": {
        "training": {"augment": ("translation", "flip")},
        "algorithm": {"local_update": "alternating"},
    },
    "fedgan proximal": {"algorithm": {"proximal": 3.0}},
    "fedgan proximal alternating": {"algorithm": {"proximal": 3.0, "local_update": "alternating"}},
    "fedgan r1": {"training": {"regularizer": "r1", "regularizer_weight": 5.0}},
    "fedgan r1 lazy": {
        "training": {
            "regularizer": "r1",
            "regularizer_weight": 5.0,
            "regularizer_interval": 3,
            "augment": ("flip", "translation"),
        },
        "algorithm": {"local_update": "alternating"},
    },
    "fedgan lecam": {"training": {"regularizer": "lecam", "regularizer_weight": 2.0}},
    "fedgan frozen": {"training": {"freeze_discriminator": 2}},
    "fess_gda": {"algorithm": {"smoothing": 50.0}},
    "fess_gda sgd": {
        "algorithm": {"smoothing": 2.0, "smoothing_rate": 0.3},
        "training": {"optimizer": "sgd", "discriminator_lr": 0.1, "generator_lr": 0.1},
        "aggregation": {"server_options": {"rate": 0.7}},
    },
    "fess_gda random": {
        "algorithm": {"smoothing": 50.0, "smoothing_rate": 0.5},
        "participation": {"policy": "random", "count": 2},
    },
    "fess_gda conditional": {"algorithm": {"smoothing": 50.0}, "model": {"conditional": True}},
    "fess_gda none": {"algorithm": {"smoothing": 0.0}},
    "fegan": {},
    "fegan up": {"algorithm": {"kl_sign": 1}},
    "fegan balanced": {"participation": {"policy": "balanced", "count": 2}},
    "fegan ifl": {"algorithm": {"preset": "ifl"}},
    "fegan ifl gather": {"algorithm": {"preset": "ifl"}, "link": {"average": "gather"}},
    "mdgan": {},
    "mdgan one batch": {"algorithm": {"fake_batches": 1}},
    "mdgan three batches": {"algorithm": {"fake_batches": 3}},
    "mdgan no swap": {"algorithm": {"epochs": 0}},
    "mdgan reset": {"algorithm": {"moments": "reset"}},
    "mdgan round_robin": {"participation": {"policy": "round_robin", "count": 3}},
    "mdgan hinge": {"training": {"loss": "hinge"}},
    "mdgan frozen": {"training": {"freeze_discriminator": 1}},
    "mdgan augmented": {"training": {"augment": ("flip", "color", "cutout")}},
    "mdgan zero_centered": {
        "training": {
            "regularizer": "zero_centered",
            "regularizer_weight": 5.0,
            "regularizer_interval": 3,
        }
    },
    "mdgan lecam": {"training": {"regularizer": "lecam", "regularizer_weight": 2.0}},
    "mdgan conditional": {"model": {"conditional": True}},
    "uagan": {},
    "uagan mean": {"algorithm": {"mode": "mean"}},
    "uagan max": {"algorithm": {"mode": "max"}},
    "uagan softmax": {"algorithm": {"mode": "softmax", "sharpness": 3.0}},
    "uagan uniform": {"algorithm": {"shares": "uniform"}},
    "uagan saturating": {"training": {"loss": "saturating"}},
    "uagan hinge": {"training": {"loss": "hinge"}, "algorithm": {"mode": "max"}},
    "uagan random": {"participation": {"policy": "random", "count": 2}},
    "uagan frozen": {"training": {"freeze_discriminator": 1}},
    "uagan augmented": {"training": {"augment": ("color", "translation")}},
    "uagan preset": {"algorithm": {"preset": "ua_gan"}},
    "uagan conditional": {"model": {"conditional": True}},
    "uagan wgan-gp": {"training": {"loss": "wgan-gp"}, "algorithm": {"mode": "mean"}},
    "ensemble": {"training": {"generator_steps": 2}},
    "ensemble parallel": {"algorithm": {"schedule": "parallel"}},
    "ensemble parallel round_robin": {
        "algorithm": {"schedule": "parallel"},
        "participation": {"policy": "round_robin", "count": 2},
    },
    "ensemble mean": {"algorithm": {"mode": "mean"}},
    "ensemble max": {"algorithm": {"mode": "max"}},
    "ensemble softmax": {"algorithm": {"mode": "softmax", "sharpness": 3.0}},
    "ensemble uniform": {"algorithm": {"shares": "uniform"}},
    "ensemble reset": {"algorithm": {"moments": "reset"}},
    "ensemble random": {"participation": {"policy": "random", "count": 2}},
    "ensemble frozen": {"training": {"freeze_discriminator": 1}},
    "ensemble augmented": {"training": {"augment": ("color", "translation")}},
    "ensemble zero_centered": {
        "training": {"regularizer": "zero_centered", "regularizer_weight": 5.0}
    },
    "ensemble conditional": {"model": {"conditional": True}},
    "ensemble conditional random": {
        "model": {"conditional": True},
        "participation": {"policy": "random", "count": 2},
    },
    "ensemble wgan-gp": {"training": {"loss": "wgan-gp"}, "algorithm": {"mode": "mean"}},
    "dp_fedavg_gan": {"algorithm": {"clip": 0.002}},
    "dp_fedavg_gan more noise": {"algorithm": {"clip": 0.01, "noise": 3.0}},
    "dp_fedavg_gan average": {"algorithm": {"clip": 0.001, "noise": 0.0, "batchnorm": "average"}},
    "dp_fedavg_gan round_robin": {"participation": {"policy": "round_robin", "count": 2}},
    "dp_fedavg_gan frozen r1": {
        "training": {"regularizer": "r1", "regularizer_weight": 5.0, "freeze_discriminator": 1},
        "algorithm": {"noise": 0.0, "clip": 0.01},
    },
    "dp_fedavg_gan augmented": {"training": {"augment": ("flip", "cutout")}},
    "dp_fedavg_gan proximal": {"algorithm": {"proximal": 30.0}},
    "dp_fedavg_gan r1": {
        "training": {
            "regularizer": "r1",
            "regularizer_weight": 5.0,
            "regularizer_interval": 2,
        },
        "participation": {"policy": "round_robin", "count": 2},
    },
    "dp_fedavg_gan conditional": {"model": {"conditional": True}},
}
"""Name of the algorithm and of the case -> changes of the configuration."""


def configure(case: str):
    """Return the configuration of a case and a function that makes its networks.

    Networks for wgan-gp and conditional ones have no BatchNorm.
    """
    name, changes = case.split()[0], copy.deepcopy(CASES[case])
    changes["algorithm"] = {"name": name, **changes.get("algorithm", {})}
    if changes.get("training", {}).get("loss") == "wgan-gp":
        changes["model"] = {"discriminator_norm": "none"}
    if changes.get("model", {}).get("conditional", False):
        return toy_config(**changes), conditional_networks
    return toy_config(**changes), lambda: toy_networks(batchnorm="model" not in changes)


@pytest.mark.parametrize("case", CASES)
def test_ranks_equal_the_oracle(comm, case):
    config, make_networks = configure(case)
    shards = toy_shards(UNEQUAL)
    algorithm = toy_algorithm(Link(comm), config, shards, networks=make_networks())
    rounds = 6  # mdgan swaps after every third or fourth
    play(algorithm, rounds)
    expected_g, expected_d, players = run_oracle(config, shards, make_networks(), rounds)
    assert_server_equals(algorithm, expected_g, expected_d)
    if config.algorithm.traits.devices_keep_discriminator:
        pair = algorithm.rank_state.pair
        for device in algorithm.rank_state.devices:
            pair.flat.whole_discriminator.copy_(device.local.own[0])
            for key, value in pair.D.state_dict().items():
                if value.is_floating_point():
                    assert_close(value, players[device.index].D.state_dict()[key])


@pytest.mark.parametrize(
    ("case", "other_case"),
    [
        ("fedgan", "fedgan alternating"),
        ("fedgan", "fedgan reset"),
        ("fedgan", "fedgan augmented"),
        ("fedgan", "fedgan r1"),
        ("fedgan", "fedgan proximal"),
        ("fedgan", "fedgan lecam"),
        ("fess_gda", "fess_gda none"),
        ("mdgan", "mdgan zero_centered"),
        ("mdgan", "mdgan lecam"),
        ("uagan", "uagan preset"),
        ("uagan", "uagan frozen"),
        ("mdgan", "mdgan augmented"),
        ("uagan", "uagan augmented"),
        ("dp_fedavg_gan", "dp_fedavg_gan augmented"),
        ("fedgan", "fedgan fl_gan"),
        ("fegan", "fegan up"),
        ("fegan", "fegan ifl"),
        ("mdgan", "mdgan no swap"),
        ("mdgan", "mdgan three batches"),
        ("uagan", "uagan mean"),
        ("uagan mean", "uagan max"),
        ("uagan mean", "uagan softmax"),
        ("uagan", "uagan uniform"),
        ("ensemble", "ensemble parallel"),
        ("ensemble", "ensemble mean"),
        ("ensemble mean", "ensemble max"),
        ("ensemble mean", "ensemble softmax"),
        ("ensemble", "ensemble uniform"),
        ("ensemble", "ensemble reset"),
        ("ensemble", "ensemble augmented"),
        ("ensemble conditional", "ensemble conditional random"),
        ("dp_fedavg_gan", "dp_fedavg_gan more noise"),
    ],
)
def test_an_option_changes_the_generator(comm, case, other_case):
    """An option without effect in package and oracle would pass the tests above."""
    link = Link(comm)
    results = []
    for each in (case, other_case):
        config, make_networks = configure(each)
        results.append(trained(link, config, toy_shards(UNEQUAL), 7, networks=make_networks()))
    if link.is_server:
        assert (results[0][0] - results[1][0]).abs().max() > 1e-9
