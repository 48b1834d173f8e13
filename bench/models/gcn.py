"""A graph convolutional network on Zachary's karate club, which networkx bundles."""

import networkx as nx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 2


class GCN(nn.Module):
    """Two graph convolutions (Kipf & Welling, ICLR 2017) over one fixed graph, with dropout; returns its own loss."""

    def __init__(self, width: int = 256, dropout: float = 0.3) -> None:
        super().__init__()
        self.dropout = dropout
        adjacency, _ = club()
        self.register_buffer("adjacency", adjacency, persistent=False)
        nodes = adjacency.shape[0]
        self.first, self.second = nn.Linear(nodes, width), nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def logits(self, features: Tensor) -> Tensor:
        """Map [nodes, nodes] features to [nodes, classes]."""
        hidden = F.relu(self.adjacency @ self.first(features))
        hidden = F.dropout(hidden, self.dropout, self.training)
        hidden = F.relu(self.adjacency @ self.second(hidden))
        logits: Tensor = self.head(hidden)
        return logits

    def forward(self, features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted cross-entropy; `weights` [nodes] is 0 for nodes whose label is not shown."""
        losses = F.cross_entropy(self.logits(features), labels, reduction="none")
        return (losses * weights).sum() / weights.sum()


def club() -> tuple[Tensor, Tensor]:
    """The normalized adjacency D^-½ (A + I) D^-½, fp32 [34, 34], and the club of each member, int64 [34]."""
    graph = nx.karate_club_graph()
    matrix = torch.tensor(nx.to_numpy_array(graph, weight=None), dtype=torch.float32) + torch.eye(len(graph))
    scale = matrix.sum(1).rsqrt()
    labels = torch.tensor([graph.nodes[node]["club"] != "Mr. Hi" for node in graph], dtype=torch.int64)
    return scale[:, None] * matrix * scale, labels
