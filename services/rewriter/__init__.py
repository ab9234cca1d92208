"""The rewriter; see core.py and README.md."""
