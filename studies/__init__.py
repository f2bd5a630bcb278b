"""Studies: the tables and figures of the paper, with seeds and intervals."""
