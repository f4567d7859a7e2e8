"""Variants of one configuration, trained and evaluated alike, side by side (docs/comparing.md)."""
