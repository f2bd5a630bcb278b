"""Examples of use from outside the package."""
