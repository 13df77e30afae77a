"""One self-contained HTML page that shows a run: `python -m rwkv_jax.evaluation.report`.

run_files.py reads what a run left behind; curves.py, results_table.py, gallery.py, confusion.py
and embedding_map.py each make one section's data; page.py puts them into assets/report.html.jinja.
"""

from rwkv_jax.evaluation.report.page import write_report

__all__ = ["write_report"]
