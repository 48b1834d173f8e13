"""Find the part of a joint graph that exists once per token and vocabulary entry: logits, loss terms, their gradient.

`find_loss(graph, least_nbytes)` starts at a matrix product whose result is large and follows it by dataflow: what
depends on it row by row (`token_rows`, `row_ops`) is the region; it must close with per-token values, sums over tokens
and the gradients of the product's operands, and that gradient must be linear in one scalar tangent. Names play no part.
Read-only.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import fx

from fxcompress.passes.alias import elements_in, hint
from fxcompress.passes.find_logits import fp32_nbytes, large_products, normalizes
from fxcompress.passes.find_saved import source_of
from fxcompress.passes.follow import follow
from fxcompress.passes.linear_in import depends_on_tangents, explain_nonlinear
from fxcompress.passes.loss_region import Declined, Region, TokenSlice
from fxcompress.passes.ops import GEMMS, MOVES, full_name, op_name
from fxcompress.passes.row_ops import TokenSum, family, sums_tokens
from fxcompress.passes.row_slices import cut_of
from fxcompress.passes.token_rows import Read, Rows, Unchunkable, same, shape_of, tensors

VOCABULARY_OVER_WIDTH = 8
"""A product that is so much wider than its operand looks like logits too where the caller gets it as it is."""


def find_loss(graph: fx.Graph, least_nbytes: int) -> Region | Declined | None:
    """The region of the largest logits of at least `least_nbytes` bytes (counted in fp32), or why it is none.

    None: no product of that size leads to a normalization, or is returned as logits are.
    """
    tangents = depends_on_tangents(graph)
    starts = [node for node in large_products(graph, least_nbytes) if node not in tangents]
    declined: Declined | None = None
    for start in sorted(starts, key=lambda node: -fp32_nbytes(node)):
        search = _Search(graph, start, tangents)
        try:
            return search.region()
        except Unchunkable as reason:
            if declined is None and (normalizes(start, tangents) or search.is_returned()):
                declined = Declined(start, str(reason))
    return declined


@dataclass(slots=True)
class _Search:
    """One attempt to close a region around `start`."""

    graph: fx.Graph
    start: fx.Node
    tangents: set[fx.Node]
    rows: dict[fx.Node, Rows] = field(default_factory=dict)
    sums: dict[fx.Node, TokenSum] = field(default_factory=dict)
    ends: set[fx.Node] = field(default_factory=set)
    """Products of rows with a weight: gradients of hidden states."""
    other: dict[fx.Node, str] = field(default_factory=dict)
    """What depends on the logits and does not lie in rows, with the reason."""
    cut: TokenSlice | None = None

    def region(self) -> Region:
        """Close the region; raises `Unchunkable`."""
        if op_name(self.start) == "addmm" and self.start.kwargs:
            raise Unchunkable("the projection scales its bias")
        if (
            op_name(self.start) == "addmm"
            and len(bias := shape_of(tensors(self.start)[0])) == 2
            and not same(bias[:1], (1,))
        ):
            raise Unchunkable("the projection's bias differs between tokens")
        self.rows[self.start] = Rows(0, 1)
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in list(self.graph.nodes)[order[self.start] + 1 :]:
            self._follow(node)
        inside = self._inside()
        reads = self._reads(inside)
        rows = {
            node: self.rows[node] for node in sorted((n for n in reads if n not in self.sums), key=order.__getitem__)
        }
        sums = tuple(self.sums[node] for node in sorted((n for n in reads if n in self.sums), key=order.__getitem__))
        members = set(reads)
        tangent, chain = self._chain(members)
        # Outside readers of what was pulled in go on reading the original.
        own = [node for node in rows if node in inside]
        exits = tuple(node for node in own if any(user not in members for user in node.users))
        self._check_exits(exits)
        ordered = tuple(sorted(chain, key=order.__getitem__))
        return Region(
            self.start, rows, reads, exits, sums, tangent, ordered, frozenset(members & self.tangents), self.cut
        )

    def is_returned(self) -> bool:
        """Whether the caller gets the start, moved or cast at most, and it is as wide as logits are."""
        hidden = self.start.args[0 if op_name(self.start) == "mm" else 1]
        assert isinstance(hidden, fx.Node)
        if hint(shape_of(self.start)[1]) < VOCABULARY_OVER_WIDTH * hint(shape_of(hidden)[1]):
            return False
        moved = follow([self.start], lambda node: [user for user in node.users if op_name(user) in MOVES])
        return any(user.op == "output" for node in moved for user in node.users)

    def _follow(self, node: fx.Node) -> None:
        """Place the tokens of one node that may depend on the logits."""
        operands = node.all_input_nodes
        known = [arg for arg in operands if arg in self.rows and arg not in self.ends]
        if node.op == "output":
            self.other[node] = (
                "the caller gets it; compile a function that returns the loss alone, without a graph break before it"
            )
        elif any(arg in self.other or arg in self.sums or arg in self.ends for arg in operands):
            self.other[node] = self._inherited(operands)
        elif known:
            try:
                self._place(node, known)
            except Unchunkable as reason:
                self.other[node] = str(reason)

    def _inherited(self, operands: list[fx.Node]) -> str:
        """Why a value is not in rows, from the operand that is not."""
        arg = next((arg for arg in operands if arg in self.other), None)
        if arg is None:
            return "it reads a sum over tokens"
        reason = self.other[arg]
        return reason if reason.startswith("through ") else f"through {full_name(arg)}: {reason}"

    def _place(self, node: fx.Node, known: list[fx.Node]) -> None:
        total = sums_tokens(node, self.rows)
        if total is not None:
            self.sums[node] = total
            return
        kind, operand = family(node), known[0]
        found = kind.result(node, operand, self.rows[operand])
        for arg, read in kind.operands(node, found).items():
            if arg in known and read.rows != self.rows[arg]:
                raise Unchunkable("its operands have different rows")
        self._note_cut(node, operand)
        self.rows[node] = found
        if op_name(node) == "mm":
            self.ends.add(node)

    def _note_cut(self, node: fx.Node, operand: fx.Node) -> None:
        uncut = self.rows[operand]
        found = cut_of(node, uncut)
        if found is None:
            return
        if op_name(node) == "slice":
            cut = TokenSlice(shape_of(operand)[uncut.first : uncut.last], *found)
        elif self.cut is not None:
            cut = TokenSlice(self.cut.sizes, *found)
        if self.cut not in (None, cut):
            raise Unchunkable("two slices leave different tokens")
        self.cut = cut

    def _is_wide(self, node: fx.Node) -> bool:
        """Whether a value has about as many elements per token as there are logits."""
        if node not in self.rows or node in self.ends:
            return False
        rows, shape = self.rows[node], shape_of(node)
        per_token = elements_in(size for i, size in enumerate(shape) if not rows.first <= i < rows.last)
        return 4 * per_token >= hint(shape_of(self.start)[1])

    def _inside(self) -> set[fx.Node]:
        """Readers of logits-sized values, and what leads to them."""
        inside: set[fx.Node] = {self.start}
        for node in reversed(self.graph.nodes):
            wide = [arg for arg in node.all_input_nodes if self._is_wide(arg)]
            if wide and node not in self.rows and node not in self.sums:
                raise Unchunkable(f"{wide[0].name} is read by {_reader(node)}: {self.other[node]}")
            if wide or (node in self.rows and any(user in inside for user in node.users)):
                inside.add(node)
        return inside

    def _reads(self, inside: set[fx.Node]) -> dict[fx.Node, dict[fx.Node, Read]]:
        """How every node of the region reads its operands; pulls in what is as wide and cheap to compute."""
        reads: dict[fx.Node, dict[fx.Node, Read]] = {}
        pending = sorted(inside, key=lambda node: node.name)
        while pending:
            node = pending.pop()
            if node in reads:
                continue
            reads[node] = self._operands(node)
            for arg, read in reads[node].items():
                if arg in self.other or arg in self.sums or (arg in self.ends):
                    raise Unchunkable(
                        f"{node.name} reads {arg.name}, which mixes tokens: {self.other.get(arg, 'a sum')}"
                    )
                if self._may_pull(node, arg, read) and read.rows is not None and self._pull(arg, read.rows):
                    pending.append(arg)
        return reads

    def _operands(self, node: fx.Node) -> dict[fx.Node, Read]:
        if node in self.sums:
            return dict(self.sums[node].operands)
        if node is self.start:
            hidden = node.args[0 if op_name(node) == "mm" else 1]
            return {arg: Read(Rows(0, 1) if arg is hidden else None) for arg in tensors(node)}
        return family(node).operands(node, self.rows[node])

    def _may_pull(self, reader: fx.Node, node: fx.Node, read: Read) -> bool:
        """Whether an operand from outside is one that should not exist as a whole, or is made of such."""
        if node in self.rows or node.op != "call_function" or read.spread or op_name(reader) in GEMMS:
            return False
        return self._is_large(node) or (node in self.tangents and self._has_large_source(node))

    def _is_large(self, node: fx.Node) -> bool:
        val = node.meta.get("val")
        return isinstance(val, torch.Tensor) and 4 * elements_in(val.shape) >= elements_in(shape_of(self.start))

    def _has_large_source(self, node: fx.Node) -> bool:
        """Whether a gradient that does not depend on the logits is reduced from a large one."""

        def further(node: fx.Node) -> list[fx.Node]:
            return [arg for arg in node.all_input_nodes if arg in self.tangents and arg.op == "call_function"]

        return any(map(self._is_large, follow(further(node), further)))

    def _pull(self, node: fx.Node, rows: Rows) -> bool:
        """Take an operand that does not depend on the logits into the region, if it is cheap to compute."""
        try:
            if not family(node).cheap:
                return False
            family(node).operands(node, rows)
        except Unchunkable:
            return False
        self.rows[node] = rows
        return True

    def _chain(self, members: set[fx.Node]) -> tuple[fx.Node, set[fx.Node]]:
        """The one tangent that the region depends on, and the calls that lead from it to the region."""
        chain: set[fx.Node] = set()
        roots: set[fx.Node] = set()
        outside = self.tangents - members
        pending = [arg for node in members for arg in node.all_input_nodes if arg in outside]
        while pending:
            node = pending.pop()
            if node.op == "placeholder":
                roots.add(node)
            elif node not in chain:
                if node in self.rows or node in self.other or node in self.sums:
                    raise Unchunkable(f"the gradient's factor {node.name} depends on all tokens' logits")
                chain.add(node)
                pending += [arg for arg in node.all_input_nodes if arg in self.tangents]
        if len(roots) != 1:
            raise Unchunkable("no gradient of it is asked for" if not roots else "several losses' gradients meet in it")
        (tangent,) = roots
        if math.prod(tangent.meta["val"].shape) != 1:
            raise Unchunkable("its loss is no scalar, so that its gradient is not known in the forward")
        for node in (*members, *chain):
            if node in self.tangents and (reason := explain_nonlinear(node, self.tangents)):
                raise Unchunkable(f"{node.name}: {reason}")
        return tangent, chain

    def _check_exits(self, exits: tuple[fx.Node, ...]) -> None:
        for node in exits:
            if self.cut is not None and not self.rows[node].cut and node not in self.tangents:
                raise Unchunkable(f"{node.name} is read for tokens that the loss leaves out")


def _reader(node: fx.Node) -> str:
    where = source_of(node)
    return "the output" if node.op == "output" else full_name(node) + (f" ({where})" if where else "")
