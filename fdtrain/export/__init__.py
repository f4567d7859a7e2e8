"""A trained model in forms that others read, each compared with the model itself (docs/export.md)."""
