"""The redirector; see core.py and README.md."""
