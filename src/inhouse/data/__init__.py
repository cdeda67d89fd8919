"""Build a dataset: read sources, clean, remove duplicates, split, and write rows with the reasons for every drop."""
