import torch
import torch.nn.functional as F
from interpreter import needs_interpreter


def check_gelu(shape, *, biased):
    from flsl.model.fused_gelu import gelu

    h = (3 * torch.randn(shape)).bfloat16().requires_grad_()
    bias = torch.randn(shape[-1]).requires_grad_() if biased else None
    dy = torch.randn(shape).bfloat16()
    y = gelu(h, bias)
    y.backward(dy)
    exact = h.detach().double().requires_grad_()
    expected = F.gelu(exact)
    expected.backward(dy.double())
    assert y.dtype == h.grad.dtype == torch.bfloat16
    # a unit in the last place (the interpreter cuts off), and what the approximation adds to it
    torch.testing.assert_close(y.double(), expected, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(h.grad.double(), exact.grad, rtol=2**-7, atol=1e-6)
    if bias is not None:
        rows = exact.grad.reshape(-1, shape[-1])
        torch.testing.assert_close(bias.grad.double(), rows.sum(0), rtol=1e-5, atol=1e-5)


def check_all():
    """What the subprocess runs, under Triton's interpreter."""
    torch.manual_seed(0)
    for shape in [(3, 5, 40), (2, 300), (67, 16), (1, 1, 257)]:
        for biased in (True, False):
            check_gelu(shape, biased=biased)
    check_compiled()


def check_compiled():
    """The operation traces as it is: one graph, with the gradients of the plain call."""
    from flsl.model.fused_gelu import gelu

    values = (torch.randn(5, 40).bfloat16(), torch.randn(40))
    results = []
    for call in (gelu, torch.compile(gelu, fullgraph=True, backend="aot_eager")):
        inputs = [value.clone().requires_grad_() for value in values]
        output = call(*inputs)
        output.float().square().sum().backward()
        results.append([output.detach(), *(given.grad for given in inputs)])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


@needs_interpreter
def test_output_and_gradients_agree_with_plain_torch_under_tritons_interpreter(interpreted):
    interpreted("test_fused_gelu")


def test_approximate_tail_is_within_its_bound():
    """The module's formula, in float64 and in float32, against torch's erf."""
    h = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    exact = 0.5 * (1 + torch.erf(h / 2**0.5))
    for dtype, bound in ((torch.float64, 1e-7), (torch.float32, 5e-7)):
        a = h.abs().to(dtype)
        t = 1 / (1 + 0.3275911 * 0.5**0.5 * a)
        poly = (((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592
        tail = 0.5 * poly * t * torch.exp2(-0.7213475204444817 * a * a)
        phi = torch.where(h < 0, tail, 1 - tail)
        assert (phi.double() - exact).abs().max() < bound


def test_operation_has_a_shape_without_data():
    from flsl.model.fused_gelu import gelu

    h = torch.empty(2, 3, 40, dtype=torch.bfloat16, device="meta")
    assert gelu(h).shape == h.shape
