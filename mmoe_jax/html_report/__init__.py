"""HTML report: one self-contained page about a run, a population or a search.

python -m mmoe_jax.report --workdir DIR --html FILE
"""
