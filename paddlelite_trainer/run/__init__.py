"""Where a run lives, who may write there, and which checkpoint a `ckpt_path` means."""
