"""Options of the aggregation of the devices' networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedgan_mpi import plugins


@dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """How the server combines the networks that devices send."""

    rule: str = "mean"
    """Aggregation rule, also an installed one or an import string. mean: weighted mean.
    median: median of each parameter. trimmed_mean: mean of each parameter without the
    aggregation.options.trim greatest and least. krum, multi_krum: the vectors nearest to most
    others, if aggregation.options.faulty devices send anything. geometric_median: least sum of
    distances. norm_bound: mean of updates of at most the median norm. With all but mean, the server
    keeps one vector per device. Only mean, geometric_median and norm_bound use the shares."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Options of the rule: keywords of its constructor, such as trim = 1 for trimmed_mean."""

    server_optimizer: str = "sgd"
    """Server optimizer, which takes the average update as a gradient; also an installed one or an
    import string. sgd: with rate 1 and no momentum, the plain average. adam, yogi, adagrad:
    FedAdam, FedYogi, FedAdagrad (arXiv:2003.00295)."""
    server_options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Options of the server optimizer: keywords of its constructor. sgd: rate, momentum. Others:
    rate, betas, tau."""

    compression: str = "none"
    """Compression of the parameters' updates on the way to the server; also an installed one or an
    import string. top_k: the greatest numbers by magnitude. qsgd: all numbers, rounded at random to
    8 bits without bias. BatchNorm statistics and averaged moments travel as they are. The server
    keeps one message per device."""
    compression_options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Options of the compression: keywords of its constructor. top_k: share of the numbers, default
    0.01. qsgd: bucket, the numbers that share a scale, default 512. Both: residual, error feedback,
    default true."""

    detector: str = "none"
    """Detector of dishonest devices, which lowers their shares from the next round on; also an
    installed one or an import string. loss_outliers: devices whose loss of G stands out, or of D if
    they train no G (FedDetect, arXiv:2210.10886). It needs scikit-learn."""
    detector_options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Options of the detector: keywords of its constructor. loss_outliers: decay, the factor of a
    share, default 0.9; warmup, rounds before the first search, default 10."""

    def __post_init__(self) -> None:
        plugins.find("aggregation.rule", self.rule)
        plugins.find("aggregation.server_optimizer", self.server_optimizer)
        plugins.find("aggregation.compression", self.compression)
        plugins.find("aggregation.detector", self.detector)

    @property
    def is_plain(self) -> bool:
        """Whether the server takes the plain average."""
        return self.server_optimizer == "sgd" and not self.server_options

    @property
    def needs_rows(self) -> bool:
        """Whether the server gets one message per participant instead of their sum."""
        return self.rule != "mean" or self.compression != "none"

    @property
    def is_default(self) -> bool:
        """Whether no part of it needs a check of its options."""
        options = self.options or self.compression_options or self.detector_options
        named = (self.compression, self.detector)
        return not options and self.is_plain and named == ("none", "none")
