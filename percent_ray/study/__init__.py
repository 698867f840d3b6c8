"""A blind user study: two rows of an evaluation, side by side, judged by people."""
