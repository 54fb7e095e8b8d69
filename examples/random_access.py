"""Look at single images of a finished set, without reading its tars: the tables say where each image lies.

python examples/random_access.py WORKSPACE QUERY

Any reader of Parquet that can read a range of bytes does the same, here or on s3://, gs:// and hdfs://. With DuckDB:

    SELECT shard, "offset", size, caption FROM 'shards/*.parquet' WHERE status = 'success' AND caption ILIKE '%dog%'
"""

import io
import sys

import fsspec
import pyarrow.compute as pc
import pyarrow.dataset as ds
from PIL import Image

workspace, word = sys.argv[1].rstrip("/"), sys.argv[2]
fs, root = fsspec.core.url_to_fs(f"{workspace}/shards")

tables = ds.dataset(fs.glob(f"{root}/*.parquet"), filesystem=fs, format="parquet")
found = tables.to_table(
    columns=["uid", "caption", "shard", "offset", "size"],
    filter=(ds.field("status") == "success") & pc.match_substring(ds.field("caption"), word, ignore_case=True),
).sort_by("uid")

print(f"{found.num_rows:,} samples have {word!r} in their caption")
for row in found.slice(0, 5).to_pylist():
    start = row["offset"]
    encoded = fs.cat_file(f"{root}/{row['shard']}", start=start, end=start + row["size"])  # a ranged request
    with Image.open(io.BytesIO(encoded)) as image:
        print(f"{row['uid']} {image.width} x {image.height} {row['size']:,} bytes {row['caption']!r}")
