"""Train a copy descriptor on photos, without labels, and write it as ONNX for `[dedup] detector`."""
