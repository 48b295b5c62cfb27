"""Graph matrices by hand, and Chebyshev convolution against its spectral definition and PyG."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medseg.blocks.graph import (
    ChebConv,
    NodeNorm,
    coarse_edges,
    coarse_sizes,
    pooling,
    ring_edges,
    scaled_laplacian,
    unpooling,
)
from medseg.errors import UsageError


def ring(n: int) -> torch.Tensor:
    return scaled_laplacian(n, ring_edges([n]))


@pytest.mark.parametrize("n", [3, 8, 44])
def test_eigenvalues_of_a_ring_are_cosines(n: int) -> None:
    expected = np.sort([-math.cos(2 * math.pi * m / n) for m in range(n)])
    found = torch.linalg.eigvalsh(ring(n).double()).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_ring_gives_minus_half_to_each_neighbour_and_no_edge_leaves_a_structure() -> None:
    laplacian = scaled_laplacian(7, ring_edges([4, 3]))
    assert laplacian[0].tolist() == [0, -0.5, 0, -0.5, 0, 0, 0]
    assert not laplacian[:4, 4:].any()
    assert torch.equal(laplacian, laplacian.T)


def test_convolution_of_an_eigenvector_is_the_polynomial_of_its_eigenvalue() -> None:
    torch.manual_seed(0)
    n, m = 12, 2
    vector = torch.cos(2 * math.pi * m * torch.arange(n) / n).view(1, n, 1)
    conv = ChebConv(1, 3, terms=6)
    value = -math.cos(2 * math.pi * m / n)
    polynomial = sum(math.cos(k * math.acos(value)) * conv.weight[k, 0] for k in range(6))
    torch.testing.assert_close(conv(vector, ring(n)), vector * polynomial + conv.bias, rtol=1e-4, atol=1e-5)


def test_convolution_equals_that_of_pyg() -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    ours, theirs = ChebConv(4, 5, terms=6), geometric.ChebConv(4, 5, K=6, normalization="sym")
    for mine, linear in zip(ours.weight, theirs.lins, strict=True):
        linear.weight.data = mine.data.T.contiguous()
    theirs.bias.data = ours.bias.data
    edges = torch.tensor([*ring_edges([9]), *((b, a) for a, b in ring_edges([9]))]).T
    x = torch.randn(2, 9, 4)
    torch.testing.assert_close(ours(x, ring(9)), theirs(x, edges, lambda_max=torch.tensor(2.0)), rtol=1e-4, atol=1e-5)


def test_one_term_looks_at_no_neighbour_and_weights_begin_small() -> None:
    torch.manual_seed(0)
    conv = ChebConv(32, 64, terms=1)
    x = torch.randn(1, 5, 32)
    torch.testing.assert_close(conv(x, torch.full((5, 5), torch.nan)), x @ conv.weight[0] + conv.bias)
    assert abs(conv.weight.std().item() - 0.1) < 0.01


HAND_D = {4: [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], 5: [[0.5, 0.5, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1]]}
HAND_U = {
    4: [[1, 0], [0.5, 0.5], [0, 1], [0, 1]],
    5: [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]],
}


@pytest.mark.parametrize("n", [4, 5])
def test_pooling_and_unpooling_by_hand(n: int) -> None:
    assert pooling([n]).tolist() == HAND_D[n]
    assert unpooling([n]).tolist() == HAND_U[n]


@pytest.mark.parametrize("sizes", [[23], [44, 50, 26], [44, 50, 26, 23, 23], [1, 2]])
def test_rows_sum_to_one_and_structures_stay_apart(sizes: list[int]) -> None:
    down, up = pooling(sizes), unpooling(sizes)
    assert down.shape == up.T.shape == (sum(coarse_sizes(sizes)), sum(sizes))
    torch.testing.assert_close(down.sum(1), torch.ones(len(down)))
    torch.testing.assert_close(up.sum(1), torch.ones(len(up)))
    assert not up[: sizes[0], coarse_sizes(sizes)[0] :].any()
    if sizes[0] > 2:
        assert not torch.equal(down @ up, torch.eye(len(down)))


def test_23_nodes_as_the_paper_has_them() -> None:
    down, up = pooling([23]), unpooling([23])
    assert down[11].nonzero().flatten().tolist() == [22]
    assert up[21].nonzero().flatten().tolist() == [10, 11]
    assert up[22].nonzero().flatten().tolist() == [11]
    assert coarse_sizes([44, 50, 26]) == [22, 25, 13]


@pytest.mark.parametrize("sizes", [[8, 6], [23, 44]])
def test_coarse_rings_are_rings(sizes: list[int]) -> None:
    expected = {tuple(sorted(edge)) for edge in ring_edges(coarse_sizes(sizes))}
    assert set(coarse_edges(sizes, ring_edges(sizes))) == expected


def test_any_edges_may_be_given() -> None:
    path = [(0, 1), (1, 2), (2, 3)]
    assert coarse_edges([4], path) == [(0, 1)]
    assert scaled_laplacian(3, [(0, 1)])[2].tolist() == [0, 0, 0]
    with pytest.raises(UsageError, match=r"edge \(1, 4\) leaves the graph of 4 nodes"):
        scaled_laplacian(4, [(1, 4)])


def test_norm_is_over_features_as_instance_norm_of_nodes_as_channels_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 5)
    norm = NodeNorm("features")
    torch.testing.assert_close(norm(x), torch.nn.functional.layer_norm(x, (5,)))
    torch.testing.assert_close(norm(x), torch.nn.functional.instance_norm(x))
    torch.testing.assert_close(NodeNorm("nodes")(x), torch.nn.functional.instance_norm(x.mT).mT)
    with pytest.raises(UsageError, match="unknown norm_axis 'node'"):
        NodeNorm("node")
