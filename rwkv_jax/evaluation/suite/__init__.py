"""The papers' tables: which tasks there are (tasks.py), one task measured (measure.py), many, with
what is done kept on disk (run.py, ledger.py), and the tables beside the published numbers
(tables.py, markdown.py, page.py).
"""
