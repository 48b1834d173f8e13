"""Copy a graph before something edits it: PyTorch's partitioner edits what it cuts, Inductor what it lowers."""

from torch import fx

from fxcompress import compat


def copy_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """A graph with nodes and metadata of its own under the same names, sharing modules and fake values."""
    graph = fx.Graph()
    results = graph.graph_copy(gm.graph, {})
    (output,) = gm.graph.find_nodes(op="output")
    graph.output(results).meta.update(output.meta)
    copy = compat.make_graph_module(gm, graph)
    copy.meta.update(gm.meta)
    return copy
