"""``report.html`` of a run directory: one file that needs nothing else, made from the files beside it.

``python -m nemoalign.train.report RUN_DIR`` makes it again. Nothing here imports torch.
Start reading at ``page.py``; texts of rows and models are untrusted, and ``markup.py`` escapes all of it.
"""
