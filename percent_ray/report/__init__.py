"""One page of the paper's figures, as far as any runs have measured them."""
