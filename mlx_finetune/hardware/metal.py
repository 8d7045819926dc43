"""Limits handed to MLX before its first allocation. On a CPU only the memory and cache limits mean anything."""

from mlx_finetune.hardware.limits import Limits


def apply_limits(limits: Limits) -> None:
    """Set the limits in this process; call it before the model is loaded."""
    import mlx.core as mx

    mx.set_memory_limit(limits.memory_bytes)
    mx.set_cache_limit(limits.cache_bytes)
    if limits.wired_bytes and mx.metal.is_available():
        mx.set_wired_limit(limits.wired_bytes)
