"""The kernels for float32: the same WKV in products of two words (`words.py`), and simpler.

Every tile takes the levels, and meets others through states alone. They are for what must be exact,
and leave speed to bfloat16.

The way: forward, backward (the kernels) -> levels (tokens among themselves), flows (what comes from
others) -> rooms (what lies in shared memory).
"""
