"""Label rules: one file each. A Params class with `use`, `name`, `weight`, and `votes(rows, params)`.

`votes` gives a label per row (Utf8), null = no vote. `rows` has the column text and, as text too, every column of the
source that holds single values. Another package adds a rule by an entry point of the group `inhouse.rule` that names
such a module.
"""
