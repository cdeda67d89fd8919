"""The command line: a face over api. Flags come from the request models, texts from the message catalogue."""
