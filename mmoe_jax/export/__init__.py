"""Export: a folder with a trained model that runs without this package.

python -m mmoe_jax.export --workdir DIR --out FOLDER
python -m mmoe_jax.verify FOLDER
"""
