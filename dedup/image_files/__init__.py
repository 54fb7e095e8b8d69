"""What headers and containers of image files say before a pixel is decoded; `dedup.decode` uses it."""
