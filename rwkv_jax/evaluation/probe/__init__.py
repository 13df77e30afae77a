"""Linear classifiers on frozen features, as CLIP's appendix A.3 fits them.

rows.py lays rows out on the devices; losses.py is what is minimised, lbfgs.py how, fit.py for many
penalties at once; search.py looks for the best penalty; few_shot.py does all of it on a few rows a
class, for many draws at once.
"""
