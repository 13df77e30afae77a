"""The WKV of RWKV-6 (linear attention with per-channel decay), in both directions and causal.

`bi_wkv6` serves encoders, `wkv6` language models; `IMPLEMENTATIONS` is the table of ways to compute
them. See `reference.py` for the definition.
"""

from rwkv_kernels.api import IMPLEMENTATIONS, Implementation, bi_wkv6, wkv6
from rwkv_kernels.platforms import platform
from rwkv_kernels.switch import without_kernels

__all__ = [
    "IMPLEMENTATIONS",
    "Implementation",
    "bi_wkv6",
    "platform",
    "without_kernels",
    "wkv6",
]
