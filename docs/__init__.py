"""Documents, and the extension that builds a site of them: ./run.sh docs."""
