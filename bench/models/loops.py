"""Two models that are no stack of dense blocks: a recurrent net as a loop over time, and message passing on a graph."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CharLSTM(nn.Module):
    """A next-token LSTM whose cell is written out, unrolled over time by the tracer."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gates = nn.Linear(2 * width, 4 * width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the mean cross-entropy of each next token; `tokens` is int64 [batch, time]."""
        x = self.embedding(tokens[:, :-1])
        h = c = torch.zeros_like(x[:, 0])
        states = []
        for step in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat((x[:, step], h), 1)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            states.append(h)
        logits = self.head(torch.stack(states, 1))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class GCN(nn.Module):
    """Symmetrically normalised graph convolutions with ReLU and dropout; the messages are gathered and scattered."""

    def __init__(self, inputs: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        sizes = [inputs] + [width] * (layers - 1) + [classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, features: Tensor, edges: Tensor, degree: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over nodes.

        Args:
            features: float32 [nodes, inputs].
            edges: int64 [2, edges], source and target; both directions and self loops are listed.
            degree: float32 [nodes], self loops counted.
            labels: int64 [nodes].
        """
        source, target = edges
        weight = (degree[source] * degree[target]).rsqrt()[:, None]
        x = features
        for number, layer in enumerate(self.layers):
            projected = layer(x)
            x = torch.zeros_like(projected).index_add(0, target, projected[source] * weight)
            if number < len(self.layers) - 1:
                x = F.dropout(F.relu(x), 0.1, self.training)
        return F.cross_entropy(x, labels)


def community_graph(communities: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A planted-partition graph as (edges, degree, community of each node), in the form that `GCN.forward` takes."""
    import networkx

    graph = networkx.planted_partition_graph(communities, size, p_in=0.06, p_out=0.002, seed=0)
    nodes = graph.number_of_nodes()
    pairs = [(a, b) for edge in graph.edges for a, b in (edge, edge[::-1])] + [(n, n) for n in range(nodes)]
    edges = torch.tensor(pairs).T.contiguous()
    degree = torch.bincount(edges[1], minlength=nodes).float()
    return edges, degree, torch.arange(nodes) // size
