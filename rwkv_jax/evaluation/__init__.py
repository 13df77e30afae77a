"""How good a trained model is: features in, named figures with their chance levels out.

embed.py turns pictures and texts into features, once a split; retrieval.py, zero_shot.py and
linear_probe.py judge them with metrics.py; run.py runs what a config asks for; results.py writes
it down; report/ shows it.
"""
