"""The mirror; see core.py and README.md."""
