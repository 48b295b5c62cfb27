"""Graphs of landmarks in plain torch: Chebyshev convolution, pooling by pairs, normalisation of nodes.

The nodes of all structures are numbered one structure after the other. No edge leaves a structure, and every function
takes the number of nodes of each: the paper's graphs are rings, `ring_edges`, but any list of edges will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medseg.errors import UsageError, nearest

Edges = Sequence[Sequence[int]]
NORM_AXES = {"features": 2, "nodes": 1}


def ring_edges(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Each node of a structure linked with the next, the last with the first."""
    return [(start + i, start + (i + 1) % n) for start, n in _runs(sizes) for i in range(n)]


def coarse_sizes(sizes: Sequence[int]) -> list[int]:
    """Nodes per structure after `pooling`: half of them, rounded up."""
    return [-(-n // 2) for n in sizes]


def coarse_edges(sizes: Sequence[int], edges: Edges) -> list[tuple[int, int]]:
    """The edges that are left when nodes 2i and 2i + 1 of every structure become one; of rings, rings."""
    owner = [start + i // 2 for (start, _), n in zip(_runs(coarse_sizes(sizes)), sizes, strict=True) for i in range(n)]
    pairs = ((owner[a], owner[b]) for a, b in edges)
    return sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]})


def scaled_laplacian(nodes: int, edges: Edges) -> Tensor:
    """2 L / 2 - 1 with the symmetric Laplacian L and its largest eigenvalue taken as 2: -D^(-1/2) A D^(-1/2), (N, N).

    Raises:
        UsageError: an edge to a node that does not exist, or from a node to itself.
    """
    adjacency = torch.zeros(nodes, nodes)
    for a, b in edges:
        if not (0 <= a < nodes and 0 <= b < nodes):
            raise UsageError(f"edge ({a}, {b}) leaves the graph of {nodes} nodes")
        if a != b:
            adjacency[a, b] = adjacency[b, a] = 1
    degree = adjacency.sum(1).clamp(min=1)
    return -adjacency / (degree[:, None] * degree).sqrt()


def pooling(sizes: Sequence[int]) -> Tensor:
    """D, (coarse nodes, nodes): row i averages nodes 2i and 2i + 1 of a structure; an odd last node is copied."""
    blocks = []
    for n in sizes:
        block = torch.zeros(-(-n // 2), n)
        for node in range(n):
            block[node // 2, node] = 1
        blocks.append(block / block.sum(1, keepdim=True))
    return torch.block_diag(*blocks)


def unpooling(sizes: Sequence[int]) -> Tensor:
    """U, (nodes, coarse nodes): even nodes copy theirs, odd ones average the two beside; an odd last node copies."""
    blocks = []
    for n in sizes:
        coarse = -(-n // 2)
        block = torch.zeros(n, coarse)
        for node in range(n):
            block[node, node // 2] += 0.5
            block[node, min(node // 2 + node % 2, coarse - 1)] += 0.5
        blocks.append(block)
    return torch.block_diag(*blocks)


def _runs(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first node, number of nodes) of each structure."""
    start = 0
    for n in sizes:
        yield start, n
        start += n


class ChebConv(nn.Module):
    """Chebyshev spectral graph convolution (Defferrard et al. 2016, arXiv 1606.09375): sum_k T_k(L) X W_k + b.

    T_0 X = X, T_1 X = L X, T_k X = 2 L T_(k-1) X - T_(k-2) X, with L as `scaled_laplacian` gives it. With one term it
    looks at no neighbour: a linear layer of each node.

    Args:
        in_features: of each node.
        out_features: of each node.
        terms: K, the number of polynomials; a node sees neighbours up to K - 1 edges away.
        bias: add b.
    """

    def __init__(self, in_features: int, out_features: int, *, terms: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(terms, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0, 0.1)

    def forward(self, x: Tensor, laplacian: Tensor) -> Tensor:
        """x (B, N, in_features), laplacian (N, N) -> (B, N, out_features)."""
        terms = [x]
        for k in range(1, len(self.weight)):
            following = laplacian @ terms[-1]
            terms.append(following if k == 1 else 2 * following - terms[-2])
        out = torch.cat(terms, 2) @ self.weight.flatten(0, 1)
        return out if self.bias is None else out + self.bias


class NodeNorm(nn.Module):
    """Zero mean and unit variance without learnt scale, of each node over its features, or of each feature over nodes.

    Args:
        axis: ``"features"`` or ``"nodes"``.
        eps: added to the variance.

    Raises:
        UsageError: for an unknown axis.
    """

    def __init__(self, axis: str = "features", *, eps: float = 1e-5) -> None:
        super().__init__()
        if axis not in NORM_AXES:
            raise UsageError(f"unknown norm_axis '{axis}': {nearest(axis, NORM_AXES)}")
        self.axis, self.eps = axis, eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, F) -> (B, N, F)."""
        if self.axis == "features":
            return functional.layer_norm(x, x.shape[2:], eps=self.eps)
        return functional.layer_norm(x.mT, x.shape[1:2], eps=self.eps).mT
