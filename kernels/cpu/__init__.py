"""The tuned torch bodies of the operators: the CPU's path, and every device's that has no Triton kernel.

One file an operator; `quant_linear` has nothing to tune and runs its specification.
"""

from moevision.kernels.cpu.expert_ffn import expert_ffn, expert_ffn_backward
from moevision.kernels.cpu.film_ffn import film_ffn, film_ffn_backward
from moevision.kernels.cpu.grouped_conv import grouped_conv, grouped_conv_backward
from moevision.kernels.cpu.plan import plan
from moevision.kernels.cpu.route import route, route_backward
from moevision.kernels.reference import quant_linear

__all__ = [
    "expert_ffn",
    "expert_ffn_backward",
    "film_ffn",
    "film_ffn_backward",
    "grouped_conv",
    "grouped_conv_backward",
    "plan",
    "quant_linear",
    "route",
    "route_backward",
]
