"""Which chains are computed next to encodes, which are left to Inductor, and what graphs and plans then hold."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

pytest.importorskip("triton")

from fxcompress import compat, pipeline, plan_io
from fxcompress.codecs import lowering, planes
from fxcompress.codecs.affine import Affine
from fxcompress.codecs.base import payload_nbytes
from fxcompress.ledger import make_plan
from fxcompress.options import Options
from fxcompress.passes.alias import storage_key
from fxcompress.passes.ops import is_view, op_name
from fxcompress.passes.rewrite import tensor_salt
from fxcompress.plan import FUSED, TRITON
from fxcompress.testing_graphs import Pair, capture

SIDE = 64


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (torch.erf(x * 0.7071067811865476) + 1)


def mlp(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return gelu(x @ up) @ down


def gated(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    inner = x @ gate
    return (inner * torch.sigmoid(inner) * (x @ up)) @ down


def channels(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Statistics over rows, which take a kernel of their own, and a rectified normalization with them."""
    inner = x @ first
    variance, mean = torch.var_mean(inner, 0, correction=0, keepdim=True)
    return torch.relu((inner - mean) * torch.rsqrt(variance + 1)) @ second


def scaled(x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """The same with a weight and a bias for each column."""
    inner = x @ first
    variance, mean = torch.var_mean(inner, 0, correction=0, keepdim=True)
    weight, bias = third.mean(0), third.sum(0)
    return torch.relu((inner - mean) * torch.rsqrt(variance + 1) * weight + bias) @ second


def capture_pair(function: Callable[..., Any], dtype: torch.dtype = torch.bfloat16) -> Pair:
    """A pair of square operands, of which the first wants a gradient."""
    torch.manual_seed(0)
    count = function.__code__.co_argcount
    operands = [torch.randn(SIDE, SIDE, dtype=dtype) / 8 for _ in range(count)]
    return capture(function, [operands[0].requires_grad_(), *(w.requires_grad_() for w in operands[1:])])


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decide as for a GPU, on tensors of the CPU."""
    monkeypatch.setattr(lowering, "wanted", lambda _: True)
    monkeypatch.setattr(planes, "wanted", lambda _: True)


def rewritten(pair: Pair, *, disabled: tuple[str, ...] = (), **options: Any) -> tuple[Pair, pipeline.Result]:
    copy = pair.copy()
    chosen = {"inner": "inductor", "min_bytes": 64, "bits": 4, "operand_bits": 4, "rounding": "stochastic", **options}
    chosen["disable_passes"] = ("outline", *disabled)
    return copy, pipeline.run(copy.fw, copy.bw, Options(**chosen))


def lowerings(result: pipeline.Result) -> dict[str, str]:
    return {d.tensor.name: d.lowering for d in result.plan.decisions if d.lowering}


def computed(gm: fx.GraphModule) -> list[str]:
    """Pointwise operators that are left in a forward."""
    nodes = [node for node in gm.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    names = {"erf", "exp", "relu", "add", "mul", "div", "neg", "pow", "sub"}
    return [n.name for n in nodes if str(n.target).split(".")[-2] in names and not n.name.startswith("actcomp")]


def kernel_arguments(gm: fx.GraphModule) -> list[dict[str, Any]]:
    return [dict(node.kwargs["kwargs"]) for node in compat.triton_nodes(gm.graph)]  # type: ignore[call-overload]


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_activation_between_products_is_one_kernel_with_its_encodes(dtype: torch.dtype) -> None:
    copy, result = rewritten(capture_pair(mlp, dtype))
    assert list(lowerings(result).values()) == [FUSED, FUSED]
    (arguments,) = kernel_arguments(copy.fw)
    assert {"i0_ptr", "codes0_ptr", "word0_ptr", "salt0", "codes1_ptr"} <= arguments.keys()
    assert not computed(copy.fw)


@pytest.mark.usefixtures("on_gpu")
def test_both_arguments_of_a_gate_are_encoded_in_one_kernel_under_their_own_names() -> None:
    copy, result = rewritten(capture_pair(gated, torch.float32), seed=3)
    node, other = compat.triton_nodes(copy.fw.graph)
    arguments: Any = node.kwargs["kwargs"]
    fused = [name for name, how in lowerings(result).items() if how == FUSED]
    assert len(fused) == 3 and {"i0_ptr", "i1_ptr", "codes2_ptr"} <= arguments.keys()
    assert "x_ptr" in other.kwargs["kwargs"]  # type: ignore[operator]
    numbers = [int(user.name.split("_")[1]) for user in node.users if user.name.endswith("_codes")]
    salts = {lowering.signed(tensor_salt(3, number)) for number in numbers}
    assert {arguments[f"salt{k}"] for k in range(3)} == salts and len(salts) == 3


@pytest.mark.usefixtures("on_gpu")
def test_payloads_and_what_is_saved_stay_as_they_were() -> None:
    for function, dtype in ((mlp, torch.bfloat16), (gated, torch.float32), (channels, torch.bfloat16)):
        pair = capture_pair(function, dtype)
        (fused, now), (unfused, before) = rewritten(pair), rewritten(pair, disabled=("fuse",))
        assert [(d.codec, d.params, d.nbytes) for d in now.plan.decisions] == [
            (d.codec, d.params, d.nbytes) for d in before.plan.decisions
        ]
        assert FUSED not in lowerings(before).values() and TRITON in lowerings(before).values()
        assert len(kernel_arguments(fused.fw)) < len(kernel_arguments(unfused.fw))
        assert now.plan.peak_after.peak_bytes <= before.plan.peak_after.peak_bytes
        shapes = [[(out.meta["val"].shape, out.meta["val"].stride()) for out in outs(p.fw)] for p in (fused, unfused)]
        assert shapes[0] == shapes[1]


def outs(gm: fx.GraphModule) -> list[fx.Node]:
    (node,) = gm.graph.find_nodes(op="output")
    return [out for out in node.args[0] if isinstance(out, fx.Node)]


@pytest.mark.usefixtures("on_gpu")
def test_the_plan_says_so_and_replays() -> None:
    pair = capture_pair(mlp)
    _, result = rewritten(pair)
    stored = plan_io.loads(plan_io.dumps(make_plan([result.plan], Options())))
    again = pair.copy()
    replayed = pipeline.run(again.fw, again.bw, Options(inner="inductor", min_bytes=64), plan=stored)
    assert lowerings(replayed) == lowerings(result) and FUSED in lowerings(result).values()


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    "options",
    [{"rounding": "nearest"}, {"inner": "aot_eager"}, {"disabled": ("fuse",)}, {"disabled": ("pick_lowering",)}],
    ids=str,
)
def test_activations_are_left_to_inductor_without_a_kernel_of_ours(options: dict[str, Any]) -> None:
    _, result = rewritten(capture_pair(mlp), **options)
    assert FUSED not in lowerings(result).values()


@pytest.mark.parametrize("function", [mlp, channels])
def test_nothing_is_fused_on_a_cpu(function: Callable[..., Any]) -> None:
    copy, result = rewritten(capture_pair(function))
    assert FUSED not in lowerings(result).values() and not compat.triton_nodes(copy.fw.graph)


@pytest.mark.usefixtures("on_gpu")
def test_nothing_is_fused_where_inductor_computes_otherwise() -> None:
    from torch._inductor import config

    with config.patch(emulate_precision_casts=True):
        _, result = rewritten(capture_pair(mlp))
    assert FUSED not in lowerings(result).values()


def residual(x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """A sum that a normalization of its rows reads in the kernel that makes it."""
    total = x @ first + x @ second
    return total + ((total - total.mean(-1, keepdim=True)) * 2) @ third


def normed(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A normalization of rows, which takes one kernel, next to an encode of what it reads."""
    inner = x @ first
    centred = inner - inner.mean(-1, keepdim=True)
    return (centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + 1)) @ second


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("function", [residual, normed])
def test_what_inductor_computes_with_a_sum_of_rows_is_left_to_it(function: Callable[..., Any]) -> None:
    copy, result = rewritten(capture_pair(function))
    assert FUSED not in lowerings(result).values() and TRITON in lowerings(result).values()
    assert computed(copy.fw)


def read_early(x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """A chain whose first part a product reads before the chain's second argument is there."""
    inner = torch.exp(x @ first)
    return (inner * (inner @ second)) @ third


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_result_that_a_generated_kernel_goes_on_with_is_left_to_it(dtype: torch.dtype) -> None:
    """From memory it would read what is rounded, and contract nothing; two encodes would be worth the read."""

    def both(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        inner = x @ gate
        y = inner * torch.sigmoid(inner) * (x @ up)
        return y @ down, torch.cos(y)

    _, result = rewritten(capture_pair(both, dtype))
    assert FUSED not in lowerings(result).values()


@pytest.mark.usefixtures("on_gpu")
def test_long_chains_are_left_to_inductor() -> None:
    """Each operator is unrolled for all elements of a thread."""

    def long(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        inner = x @ up
        for _ in range(20):
            inner = inner + torch.relu(inner * 0.5)
        return inner @ down

    _, result = rewritten(capture_pair(long))
    assert FUSED not in lowerings(result).values()


@pytest.mark.usefixtures("on_gpu")
def test_a_chain_ends_where_a_product_comes_in_between() -> None:
    copy, _ = rewritten(capture_pair(read_early))
    first, second = kernel_arguments(copy.fw)
    assert "i1_ptr" not in first and "i1_ptr" in second
    # What the first stores is what the second reads.
    assert first["t0_ptr"].meta["val"].numel() == SIDE**2


@pytest.mark.usefixtures("on_gpu")
def test_a_normalization_of_columns_shares_its_kernel_with_an_encode_and_a_mask() -> None:
    copy, result = rewritten(capture_pair(channels), disabled=("fold_masks",))
    found = lowerings(result)
    fused = [d.codec for d in result.plan.decisions if found.get(d.tensor.name) == FUSED]
    assert sorted(fused) == ["affine", "affine", "valueset"]
    (node,) = [n for n in compat.triton_nodes(copy.fw.graph) if "i1_ptr" in n.kwargs["kwargs"]]  # type: ignore[operator]
    bits = [user for user in node.users if user.meta["val"].dtype == torch.uint8 and user.name.endswith("_p0")]
    assert [mask.meta["val"].numel() for mask in bits] == [SIDE * SIDE // 8]


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("function", [channels, scaled])
def test_codes_that_answer_for_a_mask_are_made_with_the_normalization(function: Callable[..., Any]) -> None:
    copy, result = rewritten(capture_pair(function))
    found = lowerings(result)
    fused = [dict(d.params) for d in result.plan.decisions if found.get(d.tensor.name) == FUSED]
    assert [params["sign_preserving"] for params in fused] == [True, False]
    assert not [d for d in result.plan.decisions if d.tensor.dtype == "bool"]
    assert sum("codes1_ptr" in each for each in kernel_arguments(copy.fw)) == 1


@pytest.mark.usefixtures("on_gpu")
def test_a_mask_takes_its_value_and_a_nearest_encode_along() -> None:
    """A nearest encode alone is fused by Inductor; a mask is packed in a kernel of its own, whatever else there is."""
    nearest = {"bits": 8, "operand_bits": 8, "rounding": "nearest"}
    _, result = rewritten(capture_pair(channels), disabled=("fold_masks",), **nearest)
    found = lowerings(result)
    fused = [d.codec for d in result.plan.decisions if found.get(d.tensor.name) == FUSED]
    assert sorted(fused) == ["affine", "affine", "valueset"]


@pytest.mark.usefixtures("on_gpu")
def test_a_users_output_may_come_from_the_kernel() -> None:
    pair = capture_pair(lambda x, w, v: gelu(gelu(x @ w) @ v))
    copy, result = rewritten(pair)
    assert list(lowerings(result).values()).count(FUSED) == 3
    wanted = pair.fw.graph.find_nodes(op="output")[0].args[0][0].meta["val"]
    assert outs(copy.fw)[0].meta["val"].stride() == wanted.stride()
    assert not computed(copy.fw)


@pytest.mark.usefixtures("on_gpu")
def test_payloads_have_the_bytes_of_the_plan() -> None:
    copy, result = rewritten(capture_pair(mlp))
    codes = [out.meta["val"] for out in outs(copy.fw) if out.name.endswith(("_codes", "_word"))]
    assert sum(c.numel() * c.element_size() for c in codes) == sum(
        payload_nbytes(Affine(4), 1, SIDE * SIDE, torch.bfloat16) for d in result.plan.decisions if d.codec == "affine"
    )


def summed(x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """A sum that Inductor has a library add to its product."""
    return torch.relu(x @ first + x @ second) @ third


@pytest.mark.usefixtures("on_gpu")
def test_a_sum_with_a_product_stays_with_the_product() -> None:
    copy, _ = rewritten(capture_pair(summed))
    assert "add" in computed(copy.fw)


def joined(x: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Two products' results, of which one is overwritten and the other one gone when the result is encoded."""
    return torch.relu(-(x @ first) - (x @ second)) @ third


@pytest.mark.usefixtures("on_gpu")
def test_under_a_budget_no_payload_stands_beside_operands_that_would_be_gone() -> None:
    pair = capture_pair(joined)
    _, free = rewritten(pair)
    _, tight = rewritten(pair, budget="400%")
    assert FUSED in lowerings(free).values() and FUSED not in lowerings(tight).values()


@pytest.mark.usefixtures("on_gpu")
def test_what_cannot_be_overwritten_is_left_to_inductor() -> None:
    def odd(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return gelu(x @ first) @ second

    operands = [torch.randn(66, 66, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    _, result = rewritten(capture(odd, operands))
    assert FUSED not in lowerings(result).values() and TRITON in lowerings(result).values()


def biased(x: Tensor, bias: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A product with a bias that only pointwise operators read: Inductor adds the bias in their kernel, unrounded."""
    return torch.relu(torch.addmm(bias[0], x, first) * 2) @ second


@pytest.mark.usefixtures("on_gpu")
def test_a_bias_that_inductor_adds_itself_is_left_to_it() -> None:
    _, result = rewritten(capture_pair(biased))
    assert FUSED not in lowerings(result).values() and TRITON in lowerings(result).values()


def masked(x: Tensor, mask: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A mask of the caller's among the arguments: booleans are loaded by nobody."""
    return ((x @ first) * (mask > 0) * 2) @ second


@pytest.mark.usefixtures("on_gpu")
def test_booleans_are_no_arguments() -> None:
    copy, _ = rewritten(capture_pair(masked))
    for arguments in kernel_arguments(copy.fw):
        given = [node for name, node in arguments.items() if name.startswith("i")]
        assert all(node.meta["val"].dtype == torch.bfloat16 for node in given)


def stream(x: Tensor, *weights: Tensor) -> Tensor:
    """Blocks of a residual stream, each of which may be written over what it is added to."""
    for weight in weights:
        inner = x @ weight
        variance, mean = torch.var_mean(inner, 0, correction=0, keepdim=True)
        x = torch.relu((inner - mean) * torch.rsqrt(variance + 1) + x)
    return x @ weights[0]


@pytest.mark.usefixtures("on_gpu")
def test_what_views_a_kernels_result_lies_where_that_was_written() -> None:
    torch.manual_seed(0)
    operands = [torch.randn(SIDE, SIDE, dtype=torch.bfloat16, requires_grad=True) for _ in range(4)]
    copy, result = rewritten(capture(stream, operands))
    assert list(lowerings(result).values()).count(FUSED) > 3
    views = [node for node in copy.fw.graph.nodes if is_view(node) and op_name(node) != "getitem"]
    read = [node for node in views if storage_key(node.all_input_nodes[0]) is not None]
    assert read and all(storage_key(node) == storage_key(node.all_input_nodes[0]) for node in read)
    filled = [
        (node.meta["val"][name], arguments[name].meta["val"])
        for node, arguments in zip(compat.triton_nodes(copy.fw.graph), kernel_arguments(copy.fw), strict=True)
        for name in node.meta["val"]
    ]
    assert all(a.untyped_storage()._cdata == b.untyped_storage()._cdata for a, b in filled)
