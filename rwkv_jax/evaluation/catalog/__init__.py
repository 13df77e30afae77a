"""The sets of the CLIP and RWKV-CLIP papers, as data, and how each is found on disk.

entry.py says what a row holds; classification.py has the 27 sets of CLIP's linear probe (the 11 of
RWKV-CLIP's zero-shot table among them), retrieval_sets.py has COCO and Flickr30k; classes.py
reads class names and templates; find.py opens a split of a set, or says how to get it.
"""
