"""Token reduction between encoder blocks: what a stage sees, how it scores, chooses and merges, and what became of it.

    tokens.py     what flows from block to block, and what a block leaves behind for a stage to look at
    scores.py     how much each token matters: a formula each, with its paper
    select.py     which tokens are kept
    merge.py      what becomes of the others
    methods.py    the registry: a name is a score, a selection and a merge
    schedule.py   after which blocks, and how many tokens are left
    survival.py   what became of every token

Shapes: B rows, L tokens before a stage, K after it, N tokens of the unreduced sequence, D width, H heads, E head width.
"""
