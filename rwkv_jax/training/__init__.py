"""Contrastive training: loss, optimizer, one step, checkpoints and the record of a run."""
