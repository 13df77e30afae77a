"""The real shapes, named once: tests and the benchmark use them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class WkvShape:
    """[B, T, H, N] and where it comes from."""

    name: str
    B: int
    T: int
    H: int
    N: int

    @property
    def tokens(self) -> tuple[int, int, int, int]:
        return self.B, self.T, self.H, self.N


IMAGE_B32 = WkvShape("image, B/32", 32, 49, 8, 80)  # 224 / 32 = 7 x 7 patches
TEXT = WkvShape("text", 32, 77, 10, 64)
IMAGE_B16 = WkvShape("image, B/16", 8, 196, 8, 80)  # 14 x 14 patches
LONG = WkvShape("long", 2, 1024, 8, 80)
SMALL_IMAGE = WkvShape("small image", 128, 16, 4, 32)  # a model for a CPU: 32 px in patches of 8
SMALL_TEXT = WkvShape("small text", 128, 32, 4, 32)

REAL = (IMAGE_B32, TEXT, IMAGE_B16, LONG)
SMALL = (SMALL_IMAGE, SMALL_TEXT)
