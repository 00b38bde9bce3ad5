"""One declarative file per model family: imports and assignments only, no statements.

A family file defines ``FAMILY``; ``registry`` finds families by listing this package, so a new family
is one new file. May import ``weights`` and everything below it.
"""
