"""Review by people: a queue of texts, two answers each, adjudication where they differ."""
