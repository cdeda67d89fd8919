"""Cleaning steps: one file each, in one of three shapes (SHAPE).

`map`: `change(pieces, params) -> Series`, the new text of every piece (columns: row, name, text, answer).
`keep`: `drop_reason(docs, params) -> Series`, a reason per document, null = keep (columns: row, source, offset, part,
label, text).
`reduce`: `emit(docs, params) -> DataFrame` gives what the decision needs, by row and never the text itself;
`decide(emitted, params, seed) -> DataFrame` (row, reason, kept) names the rows to drop, and the row kept instead.

`change`, `drop_reason` and `emit` see one batch at a time and know nothing of the others, so batches may run anywhere.
`decide` sees all rows sorted by id and must not depend on their order.
"""
