"""The tools of this repository: they check and render the site, write the README, and publish executed runs.

They are run from the root (`python -m tools.website`) and are not installed with the package."""
