"""Hydra configs; shipped as medseg.configs."""
