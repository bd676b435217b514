"""What the bridge does, measured against the limits and against what people use today: `python -m tests.bench`.

A row (`row.py`) is a name, its goals and a function that yields a sample of every figure for each round; `rows.py`
lists them. `results.py` runs and keeps them, `table.py` shows them, `readme.py` puts them into the README; `growth.py`
measures how cost grows, and `pictures.py` draws it.
"""
