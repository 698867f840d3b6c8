"""Hundreds of bad and odd inputs to the jobs: each must be refused in lines that say why, at once.

    python -m tests.inputs.server [PART OF A NAME]     prints what each says

A file in classes/ is a class of inputs: its name, and CASES. Nothing else has to know it.
"""
