"""`xcodec-lm reproduce`: every table of the X-Codec paper as a command, on its data sets or on a small corpus.

A table is a module that says which stages it has and what they make; `stages` runs them, keeps what is done and says
what it reuses, `paper` holds the paper's figures, `page` sets ours beside them.

Source: Ye et al., "Codec Does Matter", arXiv 2408.17175.
"""
