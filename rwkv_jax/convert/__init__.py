"""Weights from other formats into Orbax, and a run's parameters out of its checkpoints."""
