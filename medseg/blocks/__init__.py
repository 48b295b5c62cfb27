"""Reusable parts of networks, by family: norm, conv, stages, skip/."""
