"""What a person types: commands, flags, help, errors, progress. Start at ``app.py``.

Importing ``app`` must stay cheap, because every ``--help`` does: command bodies import their room on
their first line. Only ``show.py`` imports rich; only files here import typer.
"""
