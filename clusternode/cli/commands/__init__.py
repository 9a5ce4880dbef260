"""The commands; each module has `add_parser` and `run`, and is listed in `cli/main.py`."""
