"""Toy configurations with a 16-bit wire."""

from __future__ import annotations

from dataclasses import replace

from toys import toy_config

from fedgan_mpi.config import Config


def lossy_config(
    wire: str = "bfloat16", feedback: bool = False, precision: str = "float64", **changes
) -> Config:
    """Return a toy configuration with a wire dtype and with or without error feedback.

    The configuration refuses a 16-bit wire with float64. Tests need it for comparisons with a
    plain loop: in float32 the two sometimes round the same number to different sides.
    """
    link = {"wire_dtype": "float32", **changes.pop("link", {})}
    training = {"precision": "float32", **changes.pop("training", {})}
    config = toy_config(link=link, training=training, **changes)
    config = replace(config, link=replace(config.link, wire_dtype=wire, error_feedback=feedback))
    object.__setattr__(config.training, "precision", precision)
    return config
