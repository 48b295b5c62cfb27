"""Reusable parts of networks, by family: norm, conv, stages, encoders, skip/."""

from medseg.blocks.vovnet import OneShotAggregation, vovnet_encoder

__all__ = ["OneShotAggregation", "vovnet_encoder"]
