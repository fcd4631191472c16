"""The operators that run experts: route, plan, expert_ffn, film_ffn, grouped_conv, quant_linear.

Every operator is a `torch.library.custom_op` with a fake implementation and a backward operator, so it traces,
compiles and exports. Bodies: `reference` (the readable specification), `cpu` (the tuned torch path), `triton` (fused
kernels); `bodies` picks. See `ops` for shapes and README.md for the data flow.
"""

from moevision.kernels.ops import expert_ffn, film_ffn, grouped_conv, plan, quant_linear, route

__all__ = ["expert_ffn", "film_ffn", "grouped_conv", "plan", "quant_linear", "route"]
