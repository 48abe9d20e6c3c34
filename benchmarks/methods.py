"""Variants of federated averaging, as flags: rules, server optimizers, compression and others.

Each is compared with the plain average of the same algorithm. They act on updates, so that devices
take several local steps per round. The rules with an option assume one faulty device.
"""

METHODS: dict[str, list[str]] = {
    "median": ["--aggregation.rule=median"],
    "trimmed mean": ["--aggregation.rule=trimmed_mean", "--aggregation.options.trim=1"],
    "multi-Krum": ["--aggregation.rule=multi_krum", "--aggregation.options.faulty=1"],
    "geometric median": ["--aggregation.rule=geometric_median"],
    "norm bound": ["--aggregation.rule=norm_bound"],
    "FedDetect": ["--aggregation.detector=loss_outliers"],
    "FedAdam": [
        "--aggregation.server_optimizer=adam", "--aggregation.server_options.rate=0.01",
        "--aggregation.server_options.betas=[0.0, 0.99]",
    ],
    "FedAvgM": [
        "--aggregation.server_options.rate=0.5", "--aggregation.server_options.momentum=0.5",
    ],
    "FedProx": ["--algorithm.proximal=0.1"],
    "top-k": [
        "--aggregation.compression=top_k", "--aggregation.compression_options.share=0.1",
    ],
    "QSGD": ["--aggregation.compression=qsgd"],
}  # fmt: skip


def sgd_methods(rate: float) -> dict[str, list[str]]:
    """Return SCAFFOLD, which needs SGD, and plain SGD, with which it is compared."""
    rates = [f"--training.{network}_lr={rate}" for network in ("discriminator", "generator")]
    flags = ["--training.optimizer=sgd", *rates]
    return {"SGD": flags, "SCAFFOLD": [*flags, "--algorithm.control_variates=true"]}
