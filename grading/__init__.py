"""The instructor's side: build the release, grade submissions. Imports nothing of the notebooks."""
