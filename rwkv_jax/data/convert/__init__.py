"""What people have on disk to ArrayRecord shards: `python -m rwkv_jax.data.convert --help`.

    sources ──► units (a tar, some rows) ──► worker processes, one unit at a time ──► shards
    `plan`      `plan`                       `readers`, `texts`, `check`, `unit`      in DIR/.work
                                                                                        │
               DIR: shards, manifest ◄── `finish`: duplicates of all units taken out ◄──┘

Every piece can be cut off at any time: a unit is either done, with its report beside it, or done
again from its source, with the same bytes.
"""
