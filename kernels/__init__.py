"""The operators that run experts: route, plan, expert_ffn, film_ffn.

Every operator is a `torch.library.custom_op` with a fake implementation and a backward operator, so it traces,
compiles and exports. Bodies: `reference` (the readable specification), `cpu` (the tuned path). See `ops` for shapes.
"""

from moevision.kernels.ops import expert_ffn, film_ffn, plan, route

__all__ = ["expert_ffn", "film_ffn", "plan", "route"]
