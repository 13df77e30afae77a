"""Open emoji: the same concepts drawn by six artists, with several human-written texts each.

The data's way: `sources` (what to fetch, checksums, licences) -> `download` (verified tarballs) ->
`emoji` (concepts and texts) and `icons` (drawings) -> `matching` (which drawing shows which emoji)
-> `splits` -> `pictures` (all of these together) -> `render` (SVG to PNG) -> `builder`
(ArrayRecord, through TFDS) -> `dataset` (prepare, open).
"""
