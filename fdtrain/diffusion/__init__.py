"""The method: pure functions of tensors. No files, no processes, no DeepSpeed."""
