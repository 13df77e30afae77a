"""What accelerators can do at most, by their makers' own numbers; reality stays below them.

One row a chip that JAX may name. "Peak" is dense bfloat16 with float32 sums: a data sheet's larger
number "with sparsity" is twice that, and nothing here is sparse.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of one JAX device.

    Attributes:
        name: as people call it.
        flops: bfloat16 FLOP/s of the matrix unit, dense.
        memory_bandwidth: bytes/s between the chip and its memory.
        memory: bytes.
        link_bandwidth: bytes/s that one link carries in one direction.
        links: how many of them a device has to its neighbours; together they are all that it can
            send at once.
        source: where the numbers stand.
    """

    name: str
    flops: float
    memory_bandwidth: float
    memory: float
    link_bandwidth: float
    links: int
    source: str

    @property
    def egress(self) -> float:
        """Bytes/s that the device sends to its neighbours when all links are busy."""
        return self.link_bandwidth * self.links


_TPU = "cloud.google.com/tpu/docs/"
_NVIDIA = "NVIDIA data sheet, "

# TPU links: half of "bidirectional ICI bandwidth (per chip)", over the ports; v5p and v4:
# "interchip interconnect BW" (4800 and 2400 Gbps), over 6. NVLink: half of the total, which counts
# both directions, as one link: a switch lets one neighbour have all of it. PCIe cards likewise.
V4 = Chip("TPU v4", 275e12, 1228e9, 32e9, 50e9, 6, _TPU + "v4")
V5E = Chip("TPU v5e", 197e12, 819e9, 16e9, 50e9, 4, _TPU + "v5e")
V5P = Chip("TPU v5p", 459e12, 2765e9, 95e9, 100e9, 6, _TPU + "v5p")
V6E = Chip("TPU v6e", 918e12, 1638e9, 32e9, 100e9, 4, _TPU + "v6e")
A100_40 = Chip("A100 40GB SXM", 312e12, 1555e9, 40e9, 300e9, 1, _NVIDIA + "A100 (2021)")
A100_80 = Chip("A100 80GB SXM", 312e12, 2039e9, 80e9, 300e9, 1, _NVIDIA + "A100 (2021)")
H100_PCIE = Chip("H100 PCIe", 756e12, 2000e9, 80e9, 300e9, 1, _NVIDIA + "H100 (2023)")
H100 = Chip("H100 SXM", 989e12, 3350e9, 80e9, 450e9, 1, _NVIDIA + "H100 (2023)")
H200 = Chip("H200 SXM", 989e12, 4800e9, 141e9, 450e9, 1, _NVIDIA + "H200 (2024)")
B200 = Chip("B200 SXM", 2250e12, 7700e9, 180e9, 900e9, 1, _NVIDIA + "DGX B200 (2024), an eighth")
L4 = Chip("L4", 121e12, 300e9, 24e9, 32e9, 1, _NVIDIA + "L4 (2023)")
L40S = Chip("L40S", 362e12, 864e9, 48e9, 32e9, 1, _NVIDIA + "L40S (2023)")
RTX_4090 = Chip(
    "GeForce RTX 4090", 165e12, 1008e9, 24e9, 32e9, 1, "NVIDIA Ada architecture whitepaper (2022)"
)

# By `device_kind`, as JAX gives it.
_KINDS = {
    "TPU v4": V4,
    "TPU v5 lite": V5E,
    "TPU v5e": V5E,
    "TPU v5": V5P,
    "TPU v5p": V5P,
    "TPU v6 lite": V6E,
    "TPU v6e": V6E,
    "NVIDIA A100-SXM4-40GB": A100_40,
    "NVIDIA A100-SXM4-80GB": A100_80,
    "NVIDIA H100 PCIe": H100_PCIE,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
    "NVIDIA B200": B200,
    "NVIDIA L4": L4,
    "NVIDIA L40S": L40S,
    "NVIDIA GeForce RTX 4090": RTX_4090,
}

CHIPS = tuple(dict.fromkeys(_KINDS.values()))


def chip_of(device_kind: str) -> Chip | None:
    """The chip that JAX names so (`jax.Device.device_kind`); None where no numbers are known.

    Example: "TPU v5 lite" -> TPU v5e; "cpu" -> None; "NVIDIA H200 NVL" -> None (another card).
    """
    return _KINDS.get(device_kind)
