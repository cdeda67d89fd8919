"""Cleaning steps: one file each, in one of four shapes (SHAPE).

`map`: `change(pieces, params, around) -> Series` is the new text of every piece (columns: row, slot, name, text,
answer); null drops the row with the reason REMOVED. It may return a second frame of notes (row first, never a text
value), which is kept beside the dataset.
`keep`: `measure(docs, params, around) -> DataFrame` gives figures per document (columns: row, source, offset, part,
label, text), `drop_reason(figures, params) -> Series` judges them: a reason, null = keep. Figures are kept, so that
thresholds can be tried again without the texts.
`reduce`: `emit(docs, params, around) -> DataFrame` gives what the decision needs, by row and never the text itself;
`decide(emitted, params, around) -> DataFrame` (row, reason, kept and, where it moves rows, part) names the rows to
drop, and the row kept instead. With `ask(emitted, params, around) -> Series` it may see the documents of some rows
again: `emit_more(docs, params, around) -> DataFrame`, which `decide` then gets as a fourth argument; `ask` may return a
frame besides, which every `emit_more` then gets as a fourth argument, and None for all rows. `report(emitted, params,
around, more) -> dict` tells something of all rows, for dataset.json. `combine(emitted, params) -> DataFrame` puts what
several batches emitted together, where it need not be held row by row; in the end it is called once over all.
`moves(params) -> bool` says that rows may change sides, so that later steps must look again.
`expand`: `expand(pieces, params, around) -> DataFrame` (parent, child, slot, name, text, answer): new rows made from
rows of the training part.

All but `decide` see one batch at a time and know nothing of the others, so batches may run anywhere. `decide` sees all
rows sorted by id and must not depend on their order. An operator may also have `external(params, project_dir)`, the
fingerprints of files that it reads and of what the environment says, RESULT_DEPENDS_ON, the packages whose version
changes its result (in any module that it imports), MEASURED_BY, the names of settings that figures depend on, and NOTE,
the code of a remark that is shown unless the dataset is for classification. Code and tables beside it enter the recipe
by themselves; a setting that cannot change a result is marked `Annotated[..., OnlyHow()]`.
"""
