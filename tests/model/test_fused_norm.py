import subprocess
import sys
from itertools import product

import torch
import torch.nn.functional as F
from interpreter import needs_interpreter

ROWS = [(3, 5, 40), (2, 3, 129), (1, 1, 64), (5, 7, 16)]


def check_add_norm(shape, stream, out, *, scaled, summed, used):
    """Compare outputs and gradients with plain torch in float64; used says which outputs have gradients."""
    from flsl.model.fused_norm import add_norm

    B, _, C = shape
    x = torch.randn(shape).to(stream).requires_grad_()
    branch = torch.randn(shape).bfloat16().requires_grad_()
    branch_bias = torch.randn(C).requires_grad_() if summed else None
    factor = torch.tensor([0.0, 1.25, 0.5, 2.0, 1.0])[:B].reshape(B, 1, 1) if scaled else None
    weight = (1 + 0.3 * torch.randn(C)).requires_grad_()
    bias = torch.randn(C).requires_grad_()
    dnew, dnormed = torch.randn(shape).to(stream), torch.randn(shape).to(out)

    new, normed = add_norm(x, branch, branch_bias, factor, weight, bias, 1e-6, out)
    assert new.dtype == stream
    assert normed.dtype == out
    given = [(new, dnew)] * ("new" in used) + [(normed, dnormed)] * ("normed" in used)
    torch.autograd.backward([y for y, _ in given], [d for _, d in given])

    xs, branches, weights, biases = (t.detach().double().requires_grad_() for t in (x, branch, weight, bias))
    scale = 1.0 if factor is None else factor.double()
    exact = xs + scale * branches
    expected_new = exact + (new.detach().double() - exact).detach()  # as rounded; the rounding passes gradients on
    torch.testing.assert_close(new.double(), exact, rtol=2**-7 if stream == torch.bfloat16 else 1e-6, atol=1e-6)
    expected_normed = F.layer_norm(expected_new, (C,), weights, biases, 1e-6)
    close(normed, expected_normed)
    expected = [(expected_new, dnew)] * ("new" in used) + [(expected_normed, dnormed)] * ("normed" in used)
    torch.autograd.backward([y for y, _ in expected], [d.double() for _, d in expected])
    close(x.grad, xs.grad)
    close(branch.grad, branches.grad)
    if "normed" in used:
        close(weight.grad, weights.grad)
        close(bias.grad, biases.grad)
    if branch_bias is not None:
        close(branch_bias.grad, branches.grad.sum((0, 1)))


def check_norm(shape, stream, out):
    from flsl.model.fused_norm import norm

    x = torch.randn(shape).to(stream).requires_grad_()
    weight, bias = torch.randn(shape[-1]).requires_grad_(), torch.randn(shape[-1]).requires_grad_()
    dnormed = torch.randn(shape).to(out)
    normed = norm(x, weight, bias, 1e-6, out)
    assert normed.dtype == out
    normed.backward(dnormed)
    xs, weights, biases = (t.detach().double().requires_grad_() for t in (x, weight, bias))
    expected = F.layer_norm(xs, shape[-1:], weights, biases, 1e-6)
    expected.backward(dnormed.double())
    close(normed, expected)
    for ours, theirs in ((x, xs), (weight, weights), (bias, biases)):
        close(ours.grad, theirs.grad)


def check_compiled():
    """The operations trace as they are: one graph, with the gradients of the plain call."""
    from flsl.model.fused_norm import add_norm, norm

    def block(x, branch, branch_bias, weight, bias):
        first = norm(x, weight, bias, 1e-6, torch.bfloat16)
        return add_norm(x, branch + first, branch_bias, None, weight, bias, 1e-6, torch.float32)[1]

    values = (torch.randn(2, 3, 40).bfloat16(), torch.randn(2, 3, 40).bfloat16(), *torch.randn(3, 40))
    results = []
    for call in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        inputs = [value.clone().requires_grad_() for value in values]
        output = call(*inputs)
        output.square().sum().backward()
        results.append([output.detach(), *(given.grad for given in inputs)])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


def close(ours, theirs):
    """Compare float32 values to five digits, and bfloat16 by its rounding (the interpreter cuts off instead)."""
    bound = 0.004 if ours.dtype == torch.bfloat16 else 1e-5
    assert ours.shape == theirs.shape
    error = (ours.double() - theirs).norm() / theirs.norm().clamp_min(1e-9)
    assert error < bound, f"relative error {error:.2e}"


def check_all():
    """What the subprocess runs, under Triton's interpreter."""
    torch.manual_seed(0)
    types = (torch.bfloat16, torch.float32)
    for shape, stream, (scaled, summed) in product(ROWS, types, [(True, True), (False, False), (False, True)]):
        check_add_norm(shape, stream, torch.bfloat16, scaled=scaled, summed=summed, used=("new", "normed"))
    for used in (("new",), ("normed",)):
        check_add_norm(ROWS[0], torch.bfloat16, torch.float32, scaled=True, summed=True, used=used)
    for shape, stream, out in product(ROWS, types, types):
        check_norm(shape, stream, out)
    check_compiled()


@needs_interpreter
def test_outputs_and_gradients_agree_with_plain_torch_under_tritons_interpreter(interpreted):
    interpreted("test_fused_norm")


def test_operations_have_shapes_without_data():
    from flsl.model.fused_norm import add_norm

    with torch.device("meta"):
        x, branch = torch.empty(2, 3, 40), torch.empty(2, 3, 40, dtype=torch.bfloat16)
        weight, bias = torch.empty(40), torch.empty(40)
    new, normed = add_norm(x, branch, None, None, weight, bias, 1e-6, torch.bfloat16)
    assert (new.shape, new.dtype) == (x.shape, torch.float32)
    assert (normed.shape, normed.dtype) == (x.shape, torch.bfloat16)


def test_module_imports_without_triton():
    hidden = "import sys; sys.modules['triton'] = None; import flsl.model.fused_norm, flsl.model.fused_gelu"
    subprocess.run([sys.executable, "-c", hidden], check=True)
