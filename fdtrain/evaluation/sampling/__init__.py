"""Images from a model: drawing them, and writing them in the forms that others read."""
