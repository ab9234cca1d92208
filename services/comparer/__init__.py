"""The comparer; see core.py and README.md."""
