"""Recognisers of others beside our rules: one file each, or a third party's entry point `inhouse.recogniser`.

`recognise(texts, params, project_dir) -> list[list[Span]]` gives the spans of every text, in characters.
"""
