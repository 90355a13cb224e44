"""The searches and tables that chose the defaults: `python -m research.digits` from the top folder."""
