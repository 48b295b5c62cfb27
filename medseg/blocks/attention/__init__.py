"""Attention: windows of tokens (Swin), and forms whose cost grows linearly with the number of tokens or channels."""
