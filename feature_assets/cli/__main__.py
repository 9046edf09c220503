"""`python -m feature_assets.cli` is `feature-assets`."""

from feature_assets.cli import main

main()
