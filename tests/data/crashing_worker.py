"""The converter's worker with a decoder that dies on one picture and hangs on another."""

import os
import time

from rwkv_jax.data.convert import unit, worker
from rwkv_jax.data.convert.check import check_image as real_check


def check_image(data, options):
    if len(data) == 7_001:
        os.abort()
    if len(data) == 7_002:
        time.sleep(60)
    return real_check(data, options)


def main():
    unit.check_image = check_image
    worker.main()
