"""One request, socket to settlement, a module for each step; `life.py` is the thread through them."""
