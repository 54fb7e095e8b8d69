"""Read the headers and containers of image files before a pixel is decoded; used by `dedup.decode`."""
