"""What is learned: one file per objective, each with its settings and the functions that training calls.

`UNIT` samples make one example (2: a better and a worse answer).
`complete(params, rows) -> params`: the settings with what the rows to learn from decide.
`labels(params) -> tuple`: what a classifier is to answer; empty for a model that writes.
`encode(rows, coding, params) -> Samples`: rows as samples; those of an example stand one after the other.
`prepare(params, start) -> state`: what must be known before training, such as a reference or a teacher; else None.
`counted(samples) -> list`: one entry for each thing that the loss is averaged over.
`loss(model, inputs, params, state) -> Loss`: summed over what is counted; `inputs` is what `collate` made.
"""
